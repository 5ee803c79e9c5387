/* Threads: contention on mutexes, condition variables and futexes; owners that die; rseq and membarrier. */
#include "case.h"

#include <linux/membarrier.h>
#include <linux/futex.h>
#include <pthread.h>

#define THREADS 6

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static int counter, turn;

static void all_threads(void *(*function)(void *))
{
	pthread_t threads[THREADS];

	for (long i = 0; i < THREADS; i++)
		CHECK(pthread_create(&threads[i], NULL, function, (void *)i) == 0);
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
}

static void *count_up(void *argument)
{
	for (int i = 0; i < 2000; i++) {
		pthread_mutex_lock(&mutex);
		int value = counter;

		if (i % 100 == 0)
			sched_yield();
		counter = value + 1;
		pthread_mutex_unlock(&mutex);
	}
	return argument;
}

static void mutexes(void)
{
	all_threads(count_up);
	CHECK(counter == 2000 * THREADS);
}

static void *take_turns(void *argument)
{
	for (int i = 0; i < 100; i++) {
		pthread_mutex_lock(&mutex);
		while (turn % THREADS != (long)argument)
			pthread_cond_wait(&condition, &mutex);
		turn++;
		pthread_cond_broadcast(&condition);
		pthread_mutex_unlock(&mutex);
	}
	return NULL;
}

static void conditions(void)
{
	all_threads(take_turns);
	CHECK(turn == 100 * THREADS);
}

static void *die_with_lock(void *argument)
{
	CHECK(pthread_mutex_lock(argument) == 0);
	return NULL;
}

static void robust(void)
{
	pthread_mutexattr_t attributes;
	pthread_mutex_t robust_mutex;
	pthread_t thread;

	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&robust_mutex, &attributes);
	CHECK(pthread_create(&thread, NULL, die_with_lock, &robust_mutex) == 0 && pthread_join(thread, NULL) == 0);
	CHECK(pthread_mutex_lock(&robust_mutex) == EOWNERDEAD);
	CHECK(pthread_mutex_consistent(&robust_mutex) == 0 && pthread_mutex_unlock(&robust_mutex) == 0);
}

static void priority_inheritance(void)
{
	pthread_mutexattr_t attributes;

	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
	CHECK(pthread_mutex_init(&mutex, &attributes) == 0);
	all_threads(count_up);
	CHECK(counter == 2000 * THREADS);
}

static void futex_timeout(void)
{
	struct timespec limit = { 0, 50000000 };
	uint64_t start = now_ns(CLOCK_MONOTONIC), took;
	int word = 1;

	CHECK(syscall(SYS_futex, &word, FUTEX_WAIT, 2, &limit, NULL, 0) == -1 && errno == EAGAIN);
	CHECK(syscall(SYS_futex, &word, FUTEX_WAIT, 1, &limit, NULL, 0) == -1 && errno == ETIMEDOUT);
	took = now_ns(CLOCK_MONOTONIC) - start;
	CHECK(took >= 50000000 && took < 5000000000);
}

static void barriers(void)
{
	long commands = syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0);

	CHECK(commands > 0 && commands & MEMBARRIER_CMD_PRIVATE_EXPEDITED);
	CHECK(syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) == 0);
	CHECK(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0);
	CHECK(syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0);
}

const struct test_case thread_cases[] = {
	{ "thread-mutexes", mutexes },	{ "thread-conditions", conditions },
	{ "thread-robust", robust },	{ "thread-priority-inheritance", priority_inheritance },
	{ "thread-futex-timeout", futex_timeout }, { "thread-barriers", barriers },
	{ NULL, NULL },
};
