/*
 * Several threads on several processors do what only works if the kernel and what is below it keep the processors
 * apart and tell each other in time.
 *
 * Usage: smp-stress SECONDS
 * Prints "ok" and how often what was done, or what is wrong.
 *
 * - locks (futex), with a pair of counters that are equal whenever the lock is free, and a clock that does not go back
 * - a page whose protection changes: no write may come through once mprotect() has returned
 * - a page that is replaced: nobody may see the old one once mmap() has returned
 * - migration, told by the system call and the C library
 * - queued signals between threads, none of which may be lost
 * - FS, GS and vector registers of each thread, over all of this
 * - processes that write to copied pages
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define MOST_THREADS 64

static void fail(const char *what, uint64_t got, uint64_t expected)
{
	printf("%s: %#lx, not %#lx\n", what, got, expected);
	fflush(stdout);
	_exit(1);
}

static void check(const char *what, uint64_t got, uint64_t expected)
{
	if (got != expected)
		fail(what, got, expected);
}

static pthread_t threads[MOST_THREADS];
static pthread_barrier_t ready;
static unsigned int count, cpus;
static atomic_bool over;
static atomic_ulong locks, protections, replacements, moves, signals_sent, signals_taken, processes;

/* What each thread has of its own. */
static _Thread_local uint64_t mine;
static _Thread_local uint64_t random_state;
static _Thread_local sigjmp_buf fault;
static _Thread_local volatile sig_atomic_t may_fault;

static uint64_t random_number(void)
{
	random_state = random_state * 6364136223846793005ul + 1442695040888963407ul;
	return random_state >> 33;
}

static uint64_t gs_base(void)
{
	uint64_t base;

	check("arch_prctl", syscall(SYS_arch_prctl, ARCH_GET_GS, &base), 0);
	return base;
}

static uint64_t rdgsbase(void)
{
	uint64_t base;

	__asm__ volatile("rdgsbase %0" : "=r"(base));
	return base;
}

/* --- Locks */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static volatile uint64_t pair[2];

static void take_lock(void)
{
	static uint64_t last;
	struct timespec time;

	pthread_mutex_lock(&lock);
	clock_gettime(CLOCK_MONOTONIC, &time);
	if (time.tv_sec * 1000000000ul + time.tv_nsec < last)
		fail("the clock", time.tv_sec * 1000000000ul + time.tv_nsec, last);
	last = time.tv_sec * 1000000000ul + time.tv_nsec;
	check("counters under the lock", pair[0], pair[1]);
	pair[0]++;
	if (random_number() % 16 == 0)
		sched_yield();
	pair[1]++;
	pthread_mutex_unlock(&lock);
	locks++;
}

/* --- Page tables */

static volatile uint64_t *protected_page, *replaced_page;
static pthread_mutex_t pages = PTHREAD_MUTEX_INITIALIZER;
static atomic_ulong generation;

static void on_fault(int signal, siginfo_t *info, void *context)
{
	(void)context;
	if (!may_fault || (info->si_addr < (void *)protected_page || info->si_addr >= (void *)protected_page + PAGE))
		fail("a fault at", (uint64_t)info->si_addr, 0);
	siglongjmp(fault, signal);
}

static void write_to_protected(void)
{
	may_fault = 1;
	if (!sigsetjmp(fault, 1))
		for (int i = 0; i < 200; i++)
			protected_page[mine % 512]++;
	may_fault = 0;
}

static void change_protection(void)
{
	uint64_t before[512];

	if (pthread_mutex_trylock(&pages))
		return;
	check("mprotect", mprotect((void *)protected_page, PAGE, PROT_READ), 0);
	for (int i = 0; i < 512; i++)
		before[i] = protected_page[i];
	for (int turn = 0; turn < 20; turn++)
		for (int i = 0; i < 512; i++)
			check("a write through a page without leave", protected_page[i], before[i]);
	check("mprotect", mprotect((void *)protected_page, PAGE, PROT_READ | PROT_WRITE), 0);
	pthread_mutex_unlock(&pages);
	protections++;
}

static void read_replaced(void)
{
	for (int i = 0; i < 100; i++) {
		uint64_t oldest = atomic_load(&generation);
		uint64_t seen = *replaced_page;

		/* The page is empty until it is written to. */
		if (seen && seen < oldest)
			fail("a page of an older generation", seen, oldest);
	}
}

static void replace_page(void)
{
	void *page;

	if (pthread_mutex_trylock(&pages))
		return;
	page = mmap((void *)replaced_page, PAGE, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check("mmap", (uint64_t)page, (uint64_t)replaced_page);
	*replaced_page = atomic_fetch_add(&generation, 1) + 1;
	pthread_mutex_unlock(&pages);
	replacements++;
}

/* --- Migration */

static void move(void)
{
	unsigned int cpu = random_number() % cpus, told;
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	check("sched_setaffinity", sched_setaffinity(0, sizeof(set), &set), 0);
	check("getcpu", syscall(SYS_getcpu, &told, NULL, NULL), 0);
	check("processor by getcpu", told, cpu);
	check("processor by the C library", sched_getcpu(), cpu);
	CPU_ZERO(&set);
	for (cpu = 0; cpu < cpus; cpu++)
		CPU_SET(cpu, &set);
	check("sched_setaffinity", sched_setaffinity(0, sizeof(set), &set), 0);
	moves++;
}

/* --- Signals */

static void on_signal(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)context;
	check("the signal's receiver", (uint64_t)info->si_value.sival_ptr, mine);
	check("GS in a signal handler", rdgsbase(), mine << 12);
	signals_taken++;
}

static void send_signal(void)
{
	unsigned int other = random_number() % count;
	union sigval value = { .sival_ptr = (void *)(uint64_t)(other + 1) };
	int error = pthread_sigqueue(threads[other], SIGRTMIN, value);

	if (error == EAGAIN)
		return;
	check("pthread_sigqueue", error, 0);
	signals_sent++;
}

/* --- Processes */

static void fork_process(void)
{
	static uint64_t data[8 * 512];
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		for (unsigned int i = 0; i < sizeof(data) / sizeof(*data); i += 512)
			data[i] = mine;
		_exit(data[512] == mine && rdgsbase() == mine << 12 ? 7 : 8);
	}
	if (pid < 0)
		fail("fork", errno, 0);
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			fail("waitpid", errno, 0);
	check("the process's status", status, 7 << 8);
	processes++;
}

static void act(void)
{
	switch (random_number() % 64) {
	case 0: fork_process(); break;
	case 1 ... 8: move(); break;
	case 9 ... 15: change_protection(); break;
	case 16 ... 22: replace_page(); break;
	case 23 ... 30: send_signal(); break;
	case 31 ... 40: take_lock(); break;
	case 41 ... 50: write_to_protected(); break;
	default: read_replaced();
	}
}

static void *work(void *number)
{
	sigset_t set;

	mine = (uint64_t)number + 1;
	random_state = mine * 0x9e3779b97f4a7c15ul + (uint64_t)time(NULL);
	check("arch_prctl", syscall(SYS_arch_prctl, ARCH_SET_GS, mine << 12), 0);
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	pthread_barrier_wait(&ready);
	while (!over) {
		uint64_t vector;

		act();
		check("GS by the instruction", rdgsbase(), mine << 12);
		check("GS by the system call", gs_base(), mine << 12);
		check("FS", *(uint64_t *)&mine, (uint64_t)number + 1);
		/* No call: what is in registers stays there, whoever runs meanwhile. */
		__asm__ volatile("movq %1, %%xmm14\n\t"
				 "movl $100000, %%ecx\n"
				 "1: decl %%ecx\n\t"
				 "jnz 1b\n\t"
				 "movq %%xmm14, %0"
				 : "=r"(vector) : "r"(mine * 3) : "rcx", "xmm14", "cc");
		check("a vector register", vector, mine * 3);
	}
	/* Signals to this thread may still be on their way. */
	for (int i = 0; i < 1000 && signals_sent != signals_taken; i++)
		usleep(10000);
	return NULL;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_flags = SA_SIGINFO };
	unsigned int seconds = argc == 2 ? atoi(argv[1]) : 0;
	sigset_t set;

	cpus = sysconf(_SC_NPROCESSORS_ONLN);
	count = cpus * 3 < MOST_THREADS ? cpus * 3 : MOST_THREADS;
	protected_page = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	replaced_page = (void *)protected_page + PAGE;
	action.sa_sigaction = on_fault;
	sigaction(SIGSEGV, &action, NULL);
	action.sa_sigaction = on_signal;
	action.sa_flags |= SA_RESTART;
	sigaction(SIGRTMIN, &action, NULL);

	/* For the threads, until they are ready. */
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	pthread_barrier_init(&ready, NULL, count);
	for (uint64_t i = 0; i < count; i++)
		check("pthread_create", pthread_create(&threads[i], NULL, work, (void *)i), 0);
	for (unsigned int i = 0; i < seconds * 10; i++)
		usleep(100000);
	over = true;
	for (unsigned int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	check("signals taken", signals_taken, signals_sent);
	printf("ok: %u processors, %u threads, %lu locks, %lu protections, %lu replacements, %lu moves, %lu signals, "
	       "%lu processes\n", cpus, count, locks, protections, replacements, moves, signals_taken, processes);
	return 0;
}
