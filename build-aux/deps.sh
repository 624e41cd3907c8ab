# shellcheck shell=sh
# SPDX-License-Identifier: Apache-2.0
# Sourced by quickstart and runtests, in the top folder: packages, bootstrap, configure.

packages='gcc make autoconf automake pkg-config libc6-dev check libglpk-dev libsqlite3-dev sqlite3
libjansson-dev libonig-dev libutf8proc-dev libjpeg62-turbo-dev libpng-dev libxxhash-dev
libmicrohttpd-dev'

# install_packages [MORE ...]
install_packages() {
    missing=
    for p in $packages "$@"; do
        dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' ||
            missing="$missing $p"
    done
    [ -n "$missing" ] || return 0
    echo "installing:$missing"
    sudo=
    [ "$(id -u)" -eq 0 ] || sudo=sudo
    # shellcheck disable=SC2086
    { $sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq \
        --no-install-recommends $missing; } >/dev/null
}

# configure_in DIR [OPTION ...]: a VPATH build in DIR, configured once
configure_in() {
    dir=$1
    shift
    if [ ! -x ./configure ] || [ -n "$(find configure.ac -newer configure)" ]; then
        autoreconf -fi >autoreconf.log 2>&1 || { cat autoreconf.log; return 1; }
        rm -f autoreconf.log
    fi
    mkdir -p "$dir"
    [ -f "$dir/config.status" ] || (cd "$dir" && ../configure -q "$@")
}
