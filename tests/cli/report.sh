#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The report of a plan: what its page holds, and (where there is a Chromium) how it looks on a phone
# and on a desk, light and dark. Screenshots stay in the build folder, in tests/cli/screenshots.
. "${srcdir:-.}/tests/cli/lib.sh"
[ -x "$bin/evenkeel-plan" ] || exit 77
shots=$bin/tests/cli/screenshots

# ---- Two plans: a described machine with a vision tower, and two CPU devices that were measured
expect 0 evenkeel plan --costs "$top/tests/planner/machines/8x-rtx4090-vl2-base.json" --explain \
    --pareto -o "$scratch/vl.json"
expect 0 evenkeel report "$scratch/vl.json" -o "$scratch/vl.html"
model=$fixtures/reference/llama-gqa-tied
db=$scratch/profile.db
devices="cpu:0/threads=0,mem=64MiB cpu:1/threads=0,mem=64MiB"
expect 0 evenkeel profile "$model" --db "$db" --devices "$devices" \
    --max-batch 2 --max-prompt 16 --max-context 64 --target-error 0.9
expect 0 evenkeel plan "$model" --db "$db" --batch 2 --prompt 16 --generate 8 --context 64 \
    --from "equal split" -o "$scratch/two.json"
expect 0 evenkeel report "$scratch/two.json" --db "$db" -o "$scratch/two.html"
warns 'has no run of'
expect 0 evenkeel bench "$model" --plan "$scratch/two.json" --db "$db" --repeats 2
expect 0 evenkeel report "$scratch/two.json" --db "$db" -o "$scratch/two.html" --force

# holds PAGE PATTERN: the page's text has it
holds() {
    grep -q -- "$2" "$scratch/$1.html" && return 0
    echo "FAILED: $1.html lacks: $2"
    failures=$((failures + 1))
}
for page in vl two; do
    for id in memory stages pipeline links; do
        holds $page "<h2 id=\"$id\">"
    done
    grep -q 'http' "$scratch/$page.html" && echo "FAILED: $page.html names the network" &&
        failures=$((failures + 1))
done
for id in recipes next purchases front; do
    holds vl "<h2 id=\"$id\">"
done
holds vl 'vision: '
holds vl 'guide \[3,4,4,4,4,4,4,4\]'
holds two '<th>measured</th><th>spread</th><th>n</th><th>error</th>'
holds two 'handed in'
[ "$failures" -eq 0 ] || finish

# ---- In a browser
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || {
    echo "no Chromium here: the report was not looked at"
    exit 77
}
look() { # ARGUMENT...: Chromium, without a window
    HOME=$scratch timeout 90 "$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars \
        --disable-dev-shm-usage --no-first-run --allow-file-access-from-files \
        --user-data-dir="$scratch/browser" "$@" 2>"$scratch/browser.log"
}
echo '<p>works</p>' >"$scratch/probe.html"
look --dump-dom "file://$scratch/probe.html" | grep -q works || {
    echo "$browser does not start here: the report was not looked at"
    exit 77
}

# A frame as wide as the screen in question; what is seen in it goes into the frame's own page.
cat >"$scratch/frame.html" <<'END'
<!DOCTYPE html><html><body style="margin:0">
<iframe style="border:0;display:block"></iframe><pre></pre>
<script>
const [page, width] = location.hash.slice(1).split(',');
const frame = document.querySelector('iframe'), facts = document.querySelector('pre');
frame.width = width;
frame.onload = () => {
  const d = frame.contentDocument, all = s => [...d.querySelectorAll(s)];
  const say = (k, v) => facts.append(k + ' ' + v + '\n');
  frame.height = d.documentElement.scrollHeight;
  facts.append('\n');
  const outside = (e, box) => {
    const r = e.getBoundingClientRect(), b = box.getBoundingClientRect();
    return r.left < b.left - 1 || r.right > b.right + 3; };
  say('overflow', d.documentElement.scrollWidth - d.documentElement.clientWidth);
  say('background', frame.contentWindow.getComputedStyle(d.body).backgroundColor);
  say('letters', Math.min(...all('svg text, td, th, p, span').filter(e => e.textContent).map(e =>
    parseFloat(frame.contentWindow.getComputedStyle(e).fontSize))));
  say('outside', all('.row svg rect').filter(e => outside(e, e.closest('svg'))).length +
    all('svg text').filter(e => outside(e, d.body)).length);
  for (const s of ['.memory', '.prefill', '.decode', '.filling', '.stepping', 'rect.link', '.point',
                   '.front', '.recipe', '.next'])
    say(s, all(s).filter(e => e.getBoundingClientRect().width > 0).length);
  for (const e of all('.row')) say('row', e.className.slice(4) + ' ' + e.dataset.key + ': ' +
    e.querySelectorAll('rect').length + ' bars, ' + e.querySelector('span').textContent);
};
frame.src = page;
</script></body></html>
END

# facts PAGE WIDTH SCHEME: looks, and leaves what it saw in $scratch/out, a picture in $shots
facts() {
    scheme=1
    [ "$3" = dark ] && scheme=0
    rm -f "$shots/$1-$2-$3.png"
    look --blink-settings=preferredColorScheme=$scheme \
        --window-size="$(($2 < 500 ? 500 : $2)),$(height $1)" \
        --virtual-time-budget=5000 --screenshot="$shots/$1-$2-$3.png" --dump-dom \
        "file://$scratch/frame.html#$1.html,$2" >"$scratch/out"
    [ -s "$shots/$1-$2-$3.png" ] && return 0
    echo "FAILED: no screenshot of $1 at $2, $3"
    failures=$((failures + 1))
}
height() { # of a screen that shows the whole page
    [ "$1" = vl ] && echo 5500 || echo 2500
}
# count KEY FILE: lines of a plan with that key
count() {
    grep -c "\"$1\":" "$scratch/$2.json"
}
# seen PAGE BACKGROUND: what every rendering of it must show
seen() {
    says '^overflow 0$'
    says '^outside 0$'
    says "^background rgb($2)\$"
    says '^letters 1[2-9]'
    says "^.memory $(count budget $1)\$"
    says "^.prefill $(count handoff_s $1)\$"
    says "^.decode $(count handoff_s $1)\$"
    says "^.filling $(count handoff_s $1)\$"
    says "^rect.link $(count alpha_s $1)\$"
}
seen_vl() {
    seen vl "$1"
    for device in 0 1 2; do
        says "^row memory cuda:$device: [4-9] bars, .* of 23.65 GiB"
    done
    says '^row prefill 0 cuda:[0-9]: [1-9][0-9]* bars, [0-9.]* ms'
    says '^.point [1-9]'
    says "^.front $(sed -n 's/^.point //p' "$scratch/out")\$"
    says '^.recipe 8$'
    says '^.next 3$'
}
seen_two() {
    seen two "$1"
    says '^row memory cpu:0: [5-9] bars, .* of 64.00 MiB, measured '
    says '^row prefill 0 cpu:0: [5-9] bars, .*, measured '
    says '^row decode 1 cpu:1: [5-9] bars, .*, measured '
    says '^.stepping 2$'
}
mkdir -p "$shots"
for width in 390 1280; do
    for page in vl two; do
        facts $page $width light
        seen_$page '255, 255, 255'
        facts $page $width dark
        seen_$page '18, 22, 28'
    done
done
finish
