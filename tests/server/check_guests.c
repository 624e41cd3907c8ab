/* SPDX-License-Identifier: Apache-2.0
 *
 * Clients that come in crowds, leave in the middle, or take for ever: what they hold is free again.
 */
#include "tests/server/live.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define HEALTH "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"

static char answer[ANSWER];

/* The code of a request of a connection that stays open. */
static int ask(int fd)
{
    say(fd, HEALTH);
    return code_of(hear_until(fd, "}\n", answer));
}

/* A name of /metrics comes to a number, soon. */
static void becomes(const char *name, double want)
{
    double is = -1;

    for (int i = 0; i < 500 && (is = metric(name)) != want; i++)
        usleep(20000);
    ck_assert_msg(is == want, "%s%g, not %g", name, is, want);
}

START_TEST(connections_beyond_the_limit_are_told_so_until_others_leave)
{
    int fds[2], fd;

    options.connections = 2;
    start();
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(ask(fds[i] = dial()), 200);
    ck_assert_int_eq(ask(fd = dial()), 503);
    ck_assert_ptr_nonnull(strstr(answer, "\r\nRetry-After: 1\r\n"));
    ck_assert_ptr_nonnull(strstr(answer, "too many connections"));
    ck_assert_str_eq(hear(fd, answer), ""); /* it was closed */
    close(fds[0]);
    while (ask(fd = dial()) != 200) /* the server may not have seen it yet */
        close(fd);
    close(fd);
    close(fds[1]);
    end(EK_OK);
}
END_TEST

START_TEST(one_address_has_its_limit_and_others_have_theirs)
{
    int fds[3];

    options.per_address = 2;
    start();
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(ask(fds[i] = dial_from("127.0.0.2")), 200);
    ck_assert_int_eq(ask(fds[2] = dial_from("127.0.0.2")), 429);
    ck_assert_ptr_nonnull(strstr(answer, "\"rate_limit_error\""));
    close(fds[2]);
    ck_assert_int_eq(ask(fds[2] = dial_from("127.0.0.3")), 200);
    for (int i = 0; i < 3; i++)
        close(fds[i]);
    end(EK_OK);
}
END_TEST

static const char *const slow[] = {
    "GET /health HTTP/1.1\r\nHost: a-name-that-takes-its-time-to-be-said-and-then-some\r\n",
    "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{\"prompt\": [1]      ",
};

/* A byte now and then is no silence; and yet the request has its time. */
START_TEST(a_request_that_takes_for_ever_to_come_is_answered_408)
{
    uint64_t begin;
    int fd;

    options.request_s = 1;
    start();
    fd = dial();
    begin = ek_now_ns();
    for (const char *p = slow[_i]; *p && ek_now_ns() - begin < 5000000000; p++) {
        if (send(fd, p, 1, MSG_NOSIGNAL) != 1 || recv(fd, answer, 1, MSG_PEEK | MSG_DONTWAIT) >= 0)
            break;
        usleep(_i == 0 ? 40000 : 50000);
    }
    ck_assert_int_eq(code_of(hear(fd, answer)), 408);
    ck_assert_ptr_nonnull(strstr(answer, "did not arrive within 1 s"));
    ck_assert_uint_lt(ek_now_ns() - begin, 4000000000);
    end(EK_OK);
}
END_TEST

/* Requests whose answers nobody takes: they fill what the system keeps for the connection. */
START_TEST(a_client_that_does_not_take_its_answers_is_closed)
{
    const char *request = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    uint64_t begin;
    ssize_t n = 0;
    int fd;

    options.request_s = 1;
    start();
    fd = dial();
    fcntl(fd, F_SETFL, O_NONBLOCK);
    begin = ek_now_ns();
    while ((n >= 0 || errno == EAGAIN) && ek_now_ns() - begin < 20000000000)
        if ((n = send(fd, request, strlen(request), MSG_NOSIGNAL)) < 0)
            usleep(1000);
    ck_assert_msg(n < 0 && errno != EAGAIN, "it was never closed");
    close(fd);
    end(EK_OK);
}
END_TEST

/* A request has its time from its first line on. */
START_TEST(a_connection_may_rest_for_longer_than_a_request_may_take)
{
    int fd;

    options.request_s = 1;
    start();
    fd = dial();
    for (int i = 0; i < 2; i++) {
        usleep(1500000);
        ck_assert_int_eq(recv(fd, answer, 1, MSG_PEEK | MSG_DONTWAIT), -1); /* nothing unasked */
        ck_assert_int_eq(ask(fd), 200);
    }
    usleep(1500000);
    say(fd, "GET /health HTTP/1.1\r\n");
    ck_assert_int_eq(code_of(hear(fd, answer)), 408);
    end(EK_OK);
}
END_TEST

/* More than the engine has sequences leave in the middle, before they could end by themselves:
 * those that ran free their sequences, those that waited are forgotten. */
START_TEST(clients_that_leave_make_room)
{
    int fds[8];

    make_slow();
    start();
    for (int i = 0; i < 8; i++) {
        fds[i] = dial();
        post(fds[i], "/v1/completions",
             i % 2 ? "{\"prompt\": [1], \"temperature\": 0, \"stream\": true}"
                   : "{\"prompt\": [1], \"temperature\": 0}");
    }
    becomes("evenkeel:num_requests_running ", 3);
    becomes("evenkeel:num_requests_waiting ", 5);
    for (int i = 0; i < 8; i++)
        close(fds[i]);
    becomes("evenkeel:request_success_total{finished_reason=\"abort\"} ", 8);
    ck_assert(metric("evenkeel:num_requests_running ") == 0);
    ck_assert(metric("evenkeel:num_requests_waiting ") == 0);
    fds[0] = dial();
    post(fds[0], "/v1/completions", "{\"prompt\": [1, 2], \"max_tokens\": 4, \"temperature\": 0}");
    ck_assert_int_eq(code_of(hear(fds[0], answer)), 200);
    ck_assert(metric("evenkeel:generation_tokens_total ") < 8 * 100);
    end(EK_OK);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("guests");
    TCase *tc = tcase_create("guests");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, open_server, close_server);
    tcase_add_test(tc, connections_beyond_the_limit_are_told_so_until_others_leave);
    tcase_add_test(tc, one_address_has_its_limit_and_others_have_theirs);
    tcase_add_loop_test(tc, a_request_that_takes_for_ever_to_come_is_answered_408, 0,
                        EK_ARRAY_LEN(slow));
    tcase_add_test(tc, a_client_that_does_not_take_its_answers_is_closed);
    tcase_add_test(tc, a_connection_may_rest_for_longer_than_a_request_may_take);
    tcase_add_test(tc, clients_that_leave_make_room);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
