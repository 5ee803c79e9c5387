/*
 * Jumps from user mode to the kernel's system call entry, the way in which a program could abuse the fallback that
 * our kernel patch has for processors whose SYSCALL leaves the privilege level alone.
 *
 * Usage: syscall-entry refused|served ADDRESS
 *   ADDRESS is that of entry_SYSCALL_64, in hexadecimal.
 *   refused: a correct processor; every jump has to end in SIGSEGV at that address.
 *   served:  the fallback is armed; a jump is a system call, which must give the caller no more than SYSCALL would.
 * Prints "ok", or what is wrong. Either way no jump may change IOPL or another flag that a user cannot set.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ucontext.h>
#include <sys/wait.h>
#include <unistd.h>

#define FLAG_IF (1ul << 9)
#define FLAG_IOPL (3ul << 12)
#define FLAG_NT (1ul << 14)
#define FLAG_VM (1ul << 17)
#define FORBIDDEN (FLAG_IOPL | FLAG_NT | FLAG_VM)

enum { SERVED = 40, ELEVATED, WRONG_RESULT, WRONG_PLACE, IN_HANDLER_ELEVATED, REFUSED };

static const struct {
	const char *name;
	uint64_t flags; /* R11, which SYSCALL would have loaded with RFLAGS */
	uint64_t return_address; /* RCX; 0: the next instruction */
} jumps[] = {
	{ "ordinary flags", FLAG_IF | 2, 0 },
	{ "IOPL 3 in R11", FLAG_IF | FLAG_IOPL | 2, 0 },
	{ "NT and VM in R11", FLAG_IF | FLAG_NT | FLAG_VM | 2, 0 },
	{ "interrupts off in R11", FLAG_IOPL, 0 },
	{ "all ones in R11", ~0ul & ~(1ul << 8), 0 }, /* but for the trap flag, a SIGTRAP of its own */
	{ "RCX not canonical", FLAG_IF | FLAG_IOPL | 2, 1ul << 63 },
	{ "RCX in the kernel", FLAG_IF | FLAG_IOPL | 2, 0xffffffff81000000ul },
};

static uint64_t entry;

static uint64_t flags(void)
{
	uint64_t value;

	__asm__ volatile("pushfq; popq %0" : "=r"(value));
	return value;
}

/* Writes nothing: this is also called with flags that the C library does not expect. */
static void on_fault(int signal, siginfo_t *info, void *context)
{
	const greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
	uint64_t at = (uint64_t)registers[REG_RIP];

	(void)signal;
	if ((flags() | (uint64_t)registers[REG_EFL]) & FORBIDDEN)
		_exit(IN_HANDLER_ELEVATED);
	_exit(at == entry && (uint64_t)info->si_addr == entry ? REFUSED : WRONG_PLACE);
}

/* Registers as SYSCALL leaves them; a 128-byte gap spares the red zone. */
static long jump(long number, uint64_t r11, uint64_t rcx)
{
	register uint64_t r11_value __asm__("r11") = r11;
	long result;

	__asm__ volatile("subq $128, %%rsp\n\t"
			 "testq %%rcx, %%rcx\n\t"
			 "jnz 1f\n\t"
			 "leaq 2f(%%rip), %%rcx\n"
			 "1:\n\t"
			 "jmp *%[entry]\n"
			 "2:\n\t"
			 "addq $128, %%rsp"
			 : "=a"(result), "+c"(rcx), "+r"(r11_value)
			 : "a"(number), [entry] "r"(entry)
			 : "memory", "cc");
	return result;
}

static int child(uint64_t r11, uint64_t rcx)
{
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
	pid_t self = getpid();
	long result;

	sigaction(SIGSEGV, &action, NULL);
	result = jump(39 /* getpid */, r11, rcx);
	if (flags() & FORBIDDEN || !(flags() & FLAG_IF))
		return ELEVATED;
	return result == self ? SERVED : WRONG_RESULT;
}

static const char *meaning(int status)
{
	static char text[64];

	if (WIFEXITED(status)) {
		switch (WEXITSTATUS(status)) {
		case SERVED: return "was served as a system call";
		case ELEVATED: return "came back with forbidden flags";
		case WRONG_RESULT: return "came back with a wrong result";
		case WRONG_PLACE: return "faulted at another address";
		case IN_HANDLER_ELEVATED: return "left forbidden flags to the signal handler";
		case REFUSED: return "was refused";
		}
	}
	snprintf(text, sizeof text, "ended with wait status %#x", status);
	return text;
}

int main(int argc, char **argv)
{
	int wrong = 0, served;

	if (argc != 3 || (strcmp(argv[1], "refused") && strcmp(argv[1], "served"))) {
		fprintf(stderr, "usage: syscall-entry refused|served ADDRESS\n");
		return 2;
	}
	served = !strcmp(argv[1], "served");
	entry = strtoull(argv[2], NULL, 16);
	if (entry < 1ul << 63) {
		fprintf(stderr, "syscall-entry: %s is no kernel address\n", argv[2]);
		return 2;
	}
	for (size_t i = 0; i < sizeof jumps / sizeof *jumps; i++) {
		/* A return address outside user space must be refused by an armed fallback, too, at whatever address. */
		int strange = jumps[i].return_address != 0;
		int status, good;
		pid_t pid = fork();

		if (pid == 0)
			_exit(child(jumps[i].flags, jumps[i].return_address));
		if (pid < 0 || waitpid(pid, &status, 0) != pid) {
			perror("syscall-entry");
			return 2;
		}
		good = WIFEXITED(status) &&
		       (WEXITSTATUS(status) == (served && !strange ? SERVED : REFUSED) ||
			(served && strange && WEXITSTATUS(status) == WRONG_PLACE));
		if (!good) {
			printf("%s: the jump %s\n", jumps[i].name, meaning(status));
			wrong = 1;
		}
	}
	if (flags() & FORBIDDEN) {
		printf("this process has forbidden flags: %#lx\n", flags());
		wrong = 1;
	}
	if (!wrong)
		puts("ok");
	return wrong;
}
