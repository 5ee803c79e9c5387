/*
 * What Linux promises its programs, one case for each part. A case is a function that runs in a process of its own: it
 * returns when all is well, and ends the process by FAIL or SKIP otherwise.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/ucontext.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CASE_FAILED 99
#define CASE_SKIPPED 77

#define SAY(...) (printf(__VA_ARGS__), putchar('\n'), fflush(stdout))
#define FAIL(...) (printf("  %s:%d: ", __FILE__, __LINE__), SAY(__VA_ARGS__), _exit(CASE_FAILED))
#define SKIP(...) (printf("  skipped: "), SAY(__VA_ARGS__), _exit(CASE_SKIPPED))
#define CHECK(condition)                                                                                       \
	do {                                                                                                   \
		if (!(condition))                                                                              \
			FAIL("not so: %s (errno %d)", #condition, errno);                                      \
	} while (0)

struct test_case {
	const char *name;
	void (*run)(void);
};

extern const struct test_case signal_cases[], fault_cases[], process_cases[], thread_cases[], state_cases[],
	memory_cases[], time_cases[], channel_cases[], ptrace_cases[];

/* What a function that faults was told: the first signal it got. */
struct fault {
	int signal, code;
	uint64_t address, ip, trap, error;
};

/* Runs the function in a child, whose handlers have a stack of their own. */
struct fault fault_of(void (*function)(void *), void *argument);
void handle(int signal, void (*handler)(int, siginfo_t *, void *), int flags);
void use_alternate_stack(void);
/* Waits for the child, which has to leave by _exit(0). */
void wait_for(pid_t pid);
uint64_t now_ns(clockid_t clock);
