/* Clocks and timers. Nothing comes early; how late it may come is bounded generously, for the machine may be busy. */
#include "case.h"

#include <poll.h>
#include <sys/auxv.h>
#include <elf.h>
#include <sys/time.h>
#include <sys/timerfd.h>

#define LATE_NS 3000000000

static volatile sig_atomic_t seen;

static void on_signal(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)info, (void)context;
	seen++;
}

static void took(const char *what, uint64_t start, uint64_t least)
{
	uint64_t time = now_ns(CLOCK_MONOTONIC) - start;

	if (time < least || time > least + LATE_NS)
		FAIL("%s: %lu us instead of %lu us", what, time / 1000, least / 1000);
}

static void sleeps(void)
{
	static const long lengths[] = { 1000, 100000, 3000000, 50000000, 200000000 };

	for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
		struct timespec time = { 0, lengths[i] };
		uint64_t start = now_ns(CLOCK_MONOTONIC);

		CHECK(nanosleep(&time, NULL) == 0);
		took("nanosleep", start, (uint64_t)lengths[i]);
		start = now_ns(CLOCK_MONOTONIC);
		CHECK(poll(NULL, 0, (int)(lengths[i] / 1000000)) == 0);
		took("poll", start, (uint64_t)lengths[i] / 1000000 * 1000000);
	}
}

static void alarms(void)
{
	struct itimerval interval = { { 0, 20000 }, { 0, 20000 } };
	uint64_t start = now_ns(CLOCK_MONOTONIC);

	handle(SIGALRM, on_signal, 0);
	alarm(1);
	pause();
	took("alarm", start, 1000000000 - 10000000); /* in jiffies */
	CHECK(seen == 1);
	start = now_ns(CLOCK_MONOTONIC);
	setitimer(ITIMER_REAL, &interval, NULL);
	while (seen < 11) /* under load: it spins */
		;
	took("setitimer", start, 200000000);
}

static void cpu_timers(void)
{
	struct itimerval interval = { { 0, 0 }, { 0, 200000 } };
	uint64_t start = now_ns(CLOCK_PROCESS_CPUTIME_ID), time;

	handle(SIGVTALRM, on_signal, 0);
	handle(SIGPROF, on_signal, 0);
	setitimer(ITIMER_PROF, &interval, NULL);
	while (!seen)
		;
	time = now_ns(CLOCK_PROCESS_CPUTIME_ID) - start;
	/* It counts ticks, the clock does not. */
	if (time < 100000000 || time > 200000000 + LATE_NS)
		FAIL("a timer of 200 ms of processor time came after %lu us", time / 1000);
}

static void timer_files(void)
{
	struct itimerspec spec = { { 0, 30000000 }, { 0, 30000000 } };
	int fd = timerfd_create(CLOCK_MONOTONIC, 0);
	uint64_t start = now_ns(CLOCK_MONOTONIC), count, sum = 0;

	CHECK(timerfd_settime(fd, 0, &spec, NULL) == 0);
	while (sum < 10) {
		CHECK(read(fd, &count, sizeof count) == sizeof count);
		sum += count;
	}
	took("timerfd", start, sum * 30000000);
}

static void posix_timers(void)
{
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	struct itimerspec spec = { { 0, 0 }, { 0, 0 } };
	timer_t timers[10];
	uint64_t start = now_ns(CLOCK_MONOTONIC);
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (int i = 0; i < 10; i++) {
		event.sigev_value.sival_int = i;
		spec.it_value.tv_nsec = (10 - i) * 20000000;
		CHECK(timer_create(CLOCK_MONOTONIC, &event, &timers[i]) == 0);
		CHECK(timer_settime(timers[i], 0, &spec, NULL) == 0);
	}
	for (int left = 10; left; left--) { /* the last that was set is the first to come, unless several have come */
		struct timespec limit = { 5, 0 };
		siginfo_t info;

		CHECK(sigtimedwait(&set, &info, &limit) == SIGUSR1 && info.si_code == SI_TIMER);
		took("timer", start, (uint64_t)(10 - info.si_value.sival_int) * 20000000);
	}
}

/* The vDSO's clock_gettime never goes back and keeps between two answers of the system call. */
static void vdso(void)
{
	static const clockid_t clocks[] = { CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_BOOTTIME, CLOCK_TAI };

	CHECK(getauxval(AT_SYSINFO_EHDR));
	for (size_t i = 0; i < sizeof clocks / sizeof *clocks; i++) {
		uint64_t last = 0, end = now_ns(CLOCK_MONOTONIC) + 150000000;

		while (now_ns(CLOCK_MONOTONIC) < end) {
			struct timespec before, after;
			uint64_t between;

			CHECK(syscall(SYS_clock_gettime, clocks[i], &before) == 0);
			between = now_ns(clocks[i]);
			CHECK(syscall(SYS_clock_gettime, clocks[i], &after) == 0);
			if (between < (uint64_t)before.tv_sec * 1000000000 + (uint64_t)before.tv_nsec ||
			    between > (uint64_t)after.tv_sec * 1000000000 + (uint64_t)after.tv_nsec || between < last)
				FAIL("clock %d: %lu not between", clocks[i], between);
			last = between;
		}
	}
	CHECK(labs(time(NULL) - (long)(now_ns(CLOCK_REALTIME) / 1000000000)) <= 1);
}

const struct test_case time_cases[] = {
	{ "time-sleeps", sleeps },	 { "time-alarms", alarms },	      { "time-processor", cpu_timers },
	{ "time-files", timer_files }, { "time-posix-timers", posix_timers }, { "time-vdso", vdso }, { NULL, NULL },
};
