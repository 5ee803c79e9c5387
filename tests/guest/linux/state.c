/* State that is switched with a process: x87, SSE, AVX, AVX-512 registers and the FS and GS bases. */
#include "case.h"

#include <asm/prctl.h>
#include <cpuid.h>
#include <immintrin.h>
#include <sched.h>

#define PROCESSES 5
#define DURATION_NS 1500000000

static void on_signal(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)info, (void)context;
	__asm__ volatile("fninit; pxor %%xmm0, %%xmm0; pxor %%xmm9, %%xmm9" ::: "xmm0", "xmm9");
}

static void ticks(void)
{
	struct timespec period = { 0, 7000000 };
	struct itimerspec spec = { period, period };
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	timer_t timer;

	handle(SIGUSR1, on_signal, SA_RESTART);
	CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 && timer_settime(timer, 0, &spec, NULL) == 0);
}

/* What the system lets programs use, by XCR0. */
static unsigned long features(void)
{
	unsigned a, b, c, d;

	if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
		return 0;
	__asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
	return (unsigned long)d << 32 | a;
}


/* Loads by the first half of the text, lets time pass or gives way by a system call, stores by the second. */
#define KEEP(clobber, load, store, in, out)                                                                    \
	__asm__ volatile(load "movl $20000, %%ecx\n 1: decl %%ecx; jnz 1b\n movl $24, %%eax\n syscall\n" store \
			 : : "r"(in), "r"(out) : "rax", "rcx", "r11", "memory", clobber)

static void keep_x87(int seed)
{
	double in[2] = { seed * 1.5, seed + 0.25 }, out[2] = { 0, 0 };

	KEEP("st", "fninit; fldl (%0); fldl 8(%0)\n", "fstpl 8(%1); fstpl (%1)\n", in, out);
	if (in[0] != out[0] || in[1] != out[1])
		FAIL("x87: %g %g instead of %g %g", out[0], out[1], in[0], in[1]);
}

static void compare(const char *what, const void *in, const void *out, size_t size)
{
	if (memcmp(in, out, size))
		FAIL("%s: other contents than loaded", what);
}

static void keep_sse(const char *in)
{
	char out[64];

	KEEP("xmm0", "movups (%0), %%xmm0; movups 16(%0), %%xmm9; movups 32(%0), %%xmm15; movups 48(%0), %%xmm7\n",
	     "movups %%xmm0, (%1); movups %%xmm9, 16(%1); movups %%xmm15, 32(%1); movups %%xmm7, 48(%1)\n", in, out);
	compare("SSE", in, out, sizeof out);
}

__attribute__((target("avx"))) static void keep_avx(const char *in)
{
	char out[64];

	KEEP("xmm3", "vmovups (%0), %%ymm3; vmovups 32(%0), %%ymm14\n", "vmovups %%ymm3, (%1); vmovups %%ymm14, 32(%1)\n",
	     in, out);
	compare("AVX", in, out, sizeof out);
}

__attribute__((target("avx512f"))) static void keep_avx512(const char *in)
{
	char out[192];

	KEEP("xmm2", "vmovups (%0), %%zmm2; vmovups 64(%0), %%zmm31; vmovups 128(%0), %%zmm17; kmovw (%0), %%k3\n",
	     "vmovups %%zmm2, (%1); vmovups %%zmm31, 64(%1); vmovups %%zmm17, 128(%1); kmovw %%k3, (%1)\n", in, out);
	out[0] = in[0], out[1] = in[1];
	compare("AVX-512", in, out, sizeof out);
}

static void keep(int seed)
{
	unsigned long have = features();
	uint64_t end = now_ns(CLOCK_MONOTONIC) + DURATION_NS, round = 0;
	char pattern[192];

	ticks();
	while (now_ns(CLOCK_MONOTONIC) < end) {
		for (size_t i = 0; i < sizeof pattern; i++)
			pattern[i] = (char)(i * 7 + (size_t)seed * 31 + round);
		keep_x87(seed + (int)round);
		keep_sse(pattern);
		if ((have & 6) == 6)
			keep_avx(pattern);
		if ((have & 0xe6) == 0xe6)
			keep_avx512(pattern);
		if (++round % 50 == 0) {
			pid_t pid = fork();

			if (pid == 0) {
				keep_sse(pattern);
				_exit(0);
			}
			wait_for(pid);
		}
	}
}

static void registers(void)
{
	pid_t pids[PROCESSES];

	SAY("  XCR0 %#lx", features());
	for (int i = 0; i < PROCESSES; i++) {
		pids[i] = fork();
		if (pids[i] == 0) {
			keep(i + 1);
			_exit(0);
		}
	}
	for (int i = 0; i < PROCESSES; i++)
		wait_for(pids[i]);
}

/* A child sees its parent's vector registers as they were at the fork. */
static void forked(void)
{
	char in[16] = "fifteen letters", out[16];
	long pid;

	__asm__ volatile("movups (%1), %%xmm5; movl $57, %%eax; syscall; movups %%xmm5, (%2)"
			 : "=&a"(pid) : "r"(in), "r"(out) : "rcx", "r11", "xmm5", "memory");
	if (pid == 0)
		_exit(memcmp(in, out, 16) ? 1 : 0);
	compare("the parent", in, out, 16);
	wait_for((pid_t)pid);
}

static void on_gs(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)info, (void)context;
	syscall(SYS_getppid);
}

__attribute__((target("fsgsbase"))) static void bases(void)
{
	static uint64_t words[PROCESSES + 1];
	uint64_t base, old;
	pid_t pids[PROCESSES];

	CHECK(syscall(SYS_arch_prctl, ARCH_SET_GS, &words[0]) == 0);
	CHECK(syscall(SYS_arch_prctl, ARCH_GET_GS, &base) == 0 && base == (uint64_t)&words[0]);
	CHECK(syscall(SYS_arch_prctl, ARCH_GET_FS, &base) == 0);
	CHECK(syscall(SYS_arch_prctl, ARCH_SET_GS, 1ul << 63) == -1);
	if (!(syscall(SYS_arch_prctl, 0, 0) == -1 && __builtin_cpu_supports("sse2")))
		FAIL("arch_prctl 0");
	CHECK(_readfsbase_u64() == base && _readgsbase_u64() == (uint64_t)&words[0]);
	handle(SIGUSR1, on_gs, 0);
	for (int i = 0; i < PROCESSES; i++) {
		pids[i] = fork();
		if (pids[i])
			continue;
		_writegsbase_u64((uint64_t)&words[i]);
		words[i] = 0x1234567800000000ul + (uint64_t)i;
		for (int round = 0; round < 300; round++) {
			uint64_t value;

			if (round % 10 == 0)
				raise(SIGUSR1);
			sched_yield();
			__asm__ volatile("movq %%gs:0, %0" : "=r"(value));
			CHECK(value == words[i] && _readgsbase_u64() == (uint64_t)&words[i]);
			CHECK(syscall(SYS_arch_prctl, ARCH_GET_GS, &old) == 0 && old == (uint64_t)&words[i]);
		}
		_exit(0);
	}
	for (int i = 0; i < PROCESSES; i++)
		wait_for(pids[i]);
	CHECK(_readgsbase_u64() == (uint64_t)&words[0]);
}

const struct test_case state_cases[] = {
	{ "state-registers", registers },
	{ "state-forked", forked },
	{ "state-bases", bases },
	{ NULL, NULL },
};
