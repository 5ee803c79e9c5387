/*
 * The floor: the bare KVM calls that any VMM must make to run a 64-bit guest with a console, in the best order
 * known, and nothing else. `tandem run` is measured against it with the same guest and the same memory.
 *
 * Usage: floor ELF        128 MiB of memory, one vCPU, COM1 on stdout.
 *
 * Kept, since the guest could tell: long mode with an identity map of 4 GiB, the Linux boot protocol's segments,
 * the host's CPUID, local APIC in the kernel, a console, ports that read as absent.
 * Left out: every check of the file beyond what keeps this program alive, boot tables, command line, initramfs,
 * IOAPIC and all other devices, input, threads, signals, time-outs, the terminal, error recovery, and
 * KVM_SET_TSS_ADDR, which only Intel processors without "unrestricted guest" need.
 *
 * Exit status: as `tandem run`: 0 power-off, 3 reset, 5 triple fault, 6 KVM gave up, 125 set-up failed.
 */
#include <elf.h>
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
	MEMORY = 128 << 20,
	GDT = 0x500,
	PML4 = 0x9000,
	PDPT = 0xa000,
	PD = 0xb000, /* four, one per GiB */
	COM1 = 0x3f8,
	LSR = 5,
	I8042 = 0x64,
	PROBE = 0x520,
	SETUP_FAILED = 125,
	MAX_CPUID = 256,
};

#define PROBE_POWER_OFF 0x01040000u /* version 1, code 4: see src/milestone/probe.rs */
#define PROBE_RESET 0x01050000u

static int call(int fd, unsigned long request, void *arg, const char *name)
{
	int result = ioctl(fd, request, arg);
	if (result < 0)
		err(SETUP_FAILED, "%s", name);
	return result;
}
#define CALL(fd, request, arg) call(fd, request, (void *)(arg), #request)

/* Reads the segments of an ELF64 file into guest memory and returns its entry point. */
static uint64_t load(const char *path, uint8_t *memory)
{
	Elf64_Ehdr header;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || pread(fd, &header, sizeof header, 0) != sizeof header)
		err(SETUP_FAILED, "%s", path);
	if (memcmp(header.e_ident, ELFMAG, SELFMAG) || header.e_machine != EM_X86_64)
		errx(SETUP_FAILED, "%s: not an x86-64 ELF file", path);
	for (unsigned i = 0; i < header.e_phnum; i++) {
		Elf64_Phdr segment;
		if (pread(fd, &segment, sizeof segment, header.e_phoff + i * sizeof segment) != sizeof segment)
			err(SETUP_FAILED, "%s", path);
		if (segment.p_type != PT_LOAD)
			continue;
		if (segment.p_paddr > MEMORY || segment.p_filesz > MEMORY - segment.p_paddr)
			errx(SETUP_FAILED, "%s: a segment lies outside the memory", path);
		if (pread(fd, memory + segment.p_paddr, segment.p_filesz, segment.p_offset) != (ssize_t)segment.p_filesz)
			err(SETUP_FAILED, "%s", path);
	}
	close(fd);
	return header.e_entry;
}

/* Identity map of the first 4 GiB by 2 MiB pages, and the code and data segments of the 64-bit boot protocol. */
static void write_tables(uint8_t *memory)
{
	static const uint64_t descriptors[] = { 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff };
	uint64_t *pml4 = (void *)(memory + PML4), *pdpt = (void *)(memory + PDPT), *pd = (void *)(memory + PD);

	memcpy(memory + GDT, descriptors, sizeof descriptors);
	pml4[0] = PDPT | 3;
	for (uint64_t i = 0; i < 4; i++)
		pdpt[i] = (PD + i * 4096) | 3;
	for (uint64_t i = 0; i < 4 * 512; i++)
		pd[i] = i << 21 | 0x83;
}

static void enter_long_mode(int vcpu, uint64_t entry)
{
	struct kvm_segment code = { .limit = ~0u, .selector = 0x10, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
	struct kvm_segment data = { .limit = ~0u, .selector = 0x18, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1 };
	struct kvm_regs regs = { .rip = entry, .rflags = 2 };
	struct kvm_sregs sregs;

	CALL(vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.gdt.base = GDT;
	sregs.gdt.limit = 31;
	sregs.cr0 = 0x80000001; /* PG, PE */
	sregs.cr3 = PML4;
	sregs.cr4 = 0x20; /* PAE */
	sregs.efer = 0x500; /* LME, LMA */
	CALL(vcpu, KVM_SET_SREGS, &sregs);
	CALL(vcpu, KVM_SET_REGS, &regs);
}

static void port_out(const struct kvm_run *run, const uint8_t *data)
{
	size_t len = (size_t)run->io.size * run->io.count;
	uint32_t word;

	if (run->io.port == COM1) {
		if (write(STDOUT_FILENO, data, len) < 0)
			err(SETUP_FAILED, "stdout");
	} else if (run->io.port == I8042 && *data == 0xfe) {
		exit(3);
	} else if (run->io.port == PROBE && run->io.size == 4) {
		memcpy(&word, data, sizeof word);
		if (word == PROBE_POWER_OFF)
			exit(0);
		if (word == PROBE_RESET)
			exit(3);
	}
}

static void port_in(const struct kvm_run *run, uint8_t *data)
{
	memset(data, run->io.port == COM1 + LSR ? 0x60 : 0xff, (size_t)run->io.size * run->io.count);
}

static void run_guest(int vcpu, struct kvm_run *run)
{
	for (;;) {
		CALL(vcpu, KVM_RUN, 0);
		switch (run->exit_reason) {
		case KVM_EXIT_IO: {
			uint8_t *data = (uint8_t *)run + run->io.data_offset;
			if (run->io.direction == KVM_EXIT_IO_OUT)
				port_out(run, data);
			else
				port_in(run, data);
			break;
		}
		case KVM_EXIT_MMIO:
			if (!run->mmio.is_write)
				memset(run->mmio.data, 0xff, sizeof run->mmio.data);
			break;
		case KVM_EXIT_SHUTDOWN:
			exit(5);
		case KVM_EXIT_INTERNAL_ERROR:
			errx(6, "KVM internal error, suberror %u", run->internal.suberror);
		default:
			errx(6, "exit reason %u", run->exit_reason);
		}
	}
}

int main(int argc, char **argv)
{
	static struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[MAX_CPUID];
	} cpuid = { .head.nent = MAX_CPUID };
	struct kvm_enable_cap split = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 } };
	struct kvm_userspace_memory_region region = { .memory_size = MEMORY };
	int kvm, vm, vcpu, run_size;
	struct kvm_run *run;
	uint8_t *memory;

	if (argc != 2)
		errx(126, "usage: floor ELF");
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		err(SETUP_FAILED, "/dev/kvm");
	CALL(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid);
	run_size = CALL(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		err(SETUP_FAILED, "guest memory");
	region.userspace_addr = (uintptr_t)memory;

	/* Memory before the interrupt controller: the other order makes the memslot wait for an SRCU grace period. */
	vm = CALL(kvm, KVM_CREATE_VM, 0);
	CALL(vm, KVM_SET_USER_MEMORY_REGION, &region);
	CALL(vm, KVM_ENABLE_CAP, &split);
	vcpu = CALL(vm, KVM_CREATE_VCPU, 0);
	run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		err(SETUP_FAILED, "kvm_run");

	write_tables(memory);
	CALL(vcpu, KVM_SET_CPUID2, &cpuid);
	enter_long_mode(vcpu, load(argv[1], memory));
	run_guest(vcpu, run);
}
