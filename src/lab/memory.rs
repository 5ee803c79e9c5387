//! Where a guest's memory is: guest-virtual to guest-physical by its page tables, to host-virtual by a memslot, to a page
//! by the host's page tables, and that only once it is touched.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress};

use super::bare::{self, Apic, BareVm, Instruction};
use super::stage::Stage;
use super::{Demonstration, LabError};
use crate::arch::x86_64::layout::{HIMEM_START, PAGE_SIZE, PAGE_TABLES};
use crate::hypervisor::{Exit, MemoryRegion, PortData, Vcpu};

pub(super) const DEMONSTRATION: Demonstration = Demonstration {
    name: "memory",
    title: "memslots, and the way from the guest's address to a page of the host's",
    seconds: 30,
    run,
};

const MIB: u64 = 1 << 20;
/// Two pieces of memory with a hole between them.
const RANGES: [(GuestAddress, usize); 2] = [(GuestAddress(0), 2 << 20), (GuestAddress(4 * MIB), 2 << 20)];
/// Where the guest begins.
const START: u64 = HIMEM_START;
/// What the guest writes to, and what it reads from, in its own, virtual addresses: the page tables lead from 1 GiB to
/// the second piece.
const WRITTEN: u64 = 0x4000_3008;
const READ: u64 = 0x4000_4008;
/// The page-directory entry for 1 GiB; the directories follow the two tables above them.
const ENTRY: GuestAddress = GuestAddress(PAGE_TABLES.0 + 3 * PAGE_SIZE);
/// What the VMM writes for the guest to read.
const GREETING: u32 = 0x0de_c0de;

/// The guest, in 64-bit mode.
const PROGRAM: [Instruction; 9] = [
    (&[0xbb, 0x08, 0x30, 0x00, 0x40], "mov ebx, 0x40003008"),
    (&[0xe6, 0x10], "out 0x10, al               ; about to touch it"),
    (&[0xc7, 0x03, 0xef, 0xbe, 0x37, 0x13], "mov [rbx], 0x1337beef"),
    (&[0xe6, 0x11], "out 0x11, al               ; has done so"),
    (&[0x8b, 0x83, 0x00, 0x10, 0x00, 0x00], "mov eax, [rbx+0x1000]"),
    (&[0xe7, 0x12], "out 0x12, eax              ; what was there"),
    (&[0xbe, 0x00, 0x00, 0x30, 0x00], "mov esi, 0x300000          ; the hole"),
    (&[0x8b, 0x06], "mov eax, [rsi]"),
    (&[0xe7, 0x13], "out 0x13, eax"),
];
/// What it writes.
const VALUE: u32 = 0x1337_beef;

fn run(stage: &Stage) -> Result<(), LabError> {
    stage.comment(
        "The guest's memory is memory of this process. A memslot tells KVM which piece of it the guest sees where. Neither the \
         mapping nor the memslot makes a page: the first access does.",
    )?;
    stage.fact("KVM here", &bare::backend().1)?;
    let Some(mut vm) = stage.unless_absent("the guest", BareVm::new(&RANGES, Apic::None))? else {
        return Ok(());
    };
    vm.load(&PROGRAM, START)?;
    vm.begin_in_long_mode(START)?;
    let entry: u64 = vm.memory.read_obj(ENTRY).map_err(bare::unreachable)?;
    // The same flags, another place: 2 MiB of virtual addresses from 1 GiB lead to the second piece.
    let moved = (entry % (2 * MIB)) | RANGES[1].0.0;
    vm.memory.write_obj(moved, ENTRY).map_err(bare::unreachable)?;

    let slots = bare::regions(&vm.memory)?;
    let before = show_slots(stage, &slots)?;
    let page = follow(stage, &mut vm, &slots)?;
    first_touch(stage, &mut vm, page, &before, &slots)?;
    other_direction(stage, &mut vm)?;
    hole(stage, &mut vm)
}

/// Tells the memslots and returns how many pages each has.
fn show_slots(stage: &Stage, slots: &[MemoryRegion]) -> Result<Vec<Option<usize>>, LabError> {
    stage.heading("memslots (KVM_SET_USER_MEMORY_REGION)")?;
    let titles = ["slot", "guest-physical", "KiB", "host-virtual", "pages that exist"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    let present: Vec<_> = slots.iter().map(|slot| pages(slot).ok()).collect();
    for (slot, present) in slots.iter().zip(&present) {
        rows.push(vec![
            slot.slot.to_string(),
            format!("{:#x}", slot.guest_addr),
            (slot.len / 1024).to_string(),
            format!("{:#x}", slot.host_addr),
            present.map_or("not told".to_owned(), |present| format!("{present} of {}", slot.len / PAGE_SIZE)),
        ]);
    }
    stage.table(&rows)?;
    stage.comment("The pages that exist are those where the VMM has put program, GDT and page tables.")?;
    Ok(present)
}

/// Follows the guest's address to the host's, which is returned.
fn follow(stage: &Stage, vm: &mut BareVm, slots: &[MemoryRegion]) -> Result<u64, LabError> {
    expect(vm, 0x10)?;
    stage.heading("one address, three times")?;
    let lost = |key: &str| LabError::Missing { what: "KVM".into(), key: key.into() };
    let physical = vm.vcpu.translate(WRITTEN).ok_or_else(|| lost("translation"))?;
    let slot = slots.iter().find(|slot| (slot.guest_addr..slot.guest_addr + slot.len).contains(&physical));
    let slot = slot.ok_or_else(|| lost("memslot"))?;
    let host = physical - slot.guest_addr + slot.host_addr;
    stage.fact("guest-virtual", &format!("{WRITTEN:#x}, of the guest's MOV"))?;
    stage.fact("guest-physical", &format!("{physical:#x}, by the guest's page tables (KVM_TRANSLATE)"))?;
    stage.fact(
        "host-virtual",
        &format!("{host:#x}, by memslot {}: - {:#x} + {:#x}", slot.slot, slot.guest_addr, slot.host_addr),
    )?;
    stage.conclude(
        physical != WRITTEN && slot.slot == 1,
        "the guest's tables and the memslot are steps of their own: the guest sets the first, the VMM the second",
    )?;
    Ok(host)
}

/// Has the guest write to a page that is not there.
fn first_touch(
    stage: &Stage,
    vm: &mut BareVm,
    host: u64,
    before: &[Option<usize>],
    slots: &[MemoryRegion],
) -> Result<(), LabError> {
    stage.heading("the first touch")?;
    let absent = page_of(host);
    if let Err(error) = &absent {
        stage.absent("the page", &format!("/proc/self/pagemap: {error}"))?;
    }
    let absent = absent.ok();
    vm.complete()?;
    expect(vm, 0x11)?;
    let present = absent.and_then(|_| page_of(host).ok());
    if let (Some(absent), Some(present)) = (absent, present) {
        stage.fact("its page, before", &absent.to_string())?;
        stage.fact("its page, after", &present.to_string())?;
        stage.conclude(
            !absent.present && present.present,
            "the guest's write, and nothing else, made the page",
        )?;
    }
    if let Some((Some(was), Some(is))) = before.get(1).copied().zip(slots.get(1).map(|slot| pages(slot).ok()))
    {
        stage.fact("pages of memslot 1", &format!("{was} before, {is} after"))?;
        if is > was + 1 {
            stage
                .comment("More than one: the host gave a huge page (/sys/kernel/mm/transparent_hugepage).")?;
        }
    }
    let physical = GuestAddress(vm.vcpu.translate(WRITTEN).unwrap_or_default());
    let value: u32 = vm.memory.read_obj(physical).map_err(bare::unreachable)?;
    stage.fact("the VMM reads there", &format!("{value:#x}"))?;
    stage.conclude(value == VALUE, "what the guest wrote is in the VMM's memory: no copy, no exit")
}

/// Has the guest read what the VMM writes.
fn other_direction(stage: &Stage, vm: &mut BareVm) -> Result<(), LabError> {
    stage.heading("the other direction")?;
    let physical = GuestAddress(vm.vcpu.translate(READ).unwrap_or_default());
    vm.memory.write_obj(GREETING, physical).map_err(bare::unreachable)?;
    stage.fact("the VMM writes", &format!("{GREETING:#x} at guest-physical {:#x}", physical.0))?;
    vm.complete()?;
    let read = expect(vm, 0x12)?;
    stage.fact("the guest reports", &format!("{read:#x}"))?;
    stage.conclude(read == GREETING, "so a virtual disk's data gets to the guest")
}

/// Has the guest read where no memslot is.
fn hole(stage: &Stage, vm: &mut BareVm) -> Result<(), LabError> {
    stage.heading("outside of all memslots")?;
    vm.complete()?;
    let addr = match vm.run()? {
        Exit::MmioRead { addr, data } => {
            data.fill(0x5a);
            addr
        }
        other => return Err(bare::unexpected(&other)),
    };
    stage.fact("KVM_RUN returned", &format!("KVM_EXIT_MMIO: read at {addr:#x}"))?;
    stage.fact("the VMM answers", "bytes of 0x5a")?;
    vm.complete()?;
    let got = expect(vm, 0x13)?;
    stage.fact("the guest got", &format!("{got:#x}"))?;
    let outside = RANGES.iter().all(|(start, len)| !(start.0..start.0 + *len as u64).contains(&addr));
    stage.conclude(
        outside && got == u32::from_ne_bytes([0x5a; 4]),
        "an address without memory is a device's register: the VMM is asked each time",
    )
}

/// Runs the guest to its write to this port, and returns what it wrote.
fn expect(vm: &mut BareVm, expected: u16) -> Result<u32, LabError> {
    match vm.run()? {
        Exit::Port { port, data: PortData::Out(bytes), .. } if port == expected => {
            let mut value = [0; 4];
            value.iter_mut().zip(bytes.iter()).for_each(|(to, from)| *to = *from);
            Ok(u32::from_le_bytes(value))
        }
        other => Err(bare::unexpected(&other)),
    }
}

/// What /proc/self/pagemap says of a page (Documentation/admin-guide/mm/pagemap.rst).
#[derive(Clone, Copy)]
struct Page {
    present: bool,
    /// Number of the page in the host's memory; 0 where we may not know (CAP_SYS_ADMIN).
    frame: u64,
}

impl From<u64> for Page {
    fn from(entry: u64) -> Self {
        Self { present: entry >> 63 == 1, frame: entry & ((1 << 55) - 1) }
    }
}

impl std::fmt::Display for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.present, self.frame) {
            (false, _) => f.write_str("none"),
            (true, 0) => f.write_str("present; where in the host's memory is told to privileged users only"),
            (true, frame) => {
                write!(f, "present: page frame {frame:#x}, host-physical {:#x}", frame * PAGE_SIZE)
            }
        }
    }
}

/// The page at this address of this process.
fn page_of(host: u64) -> io::Result<Page> {
    let mut entry = [0; 8];
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, host / PAGE_SIZE * 8)?;
    Ok(u64::from_le_bytes(entry).into())
}

/// How many pages of a memslot exist.
fn pages(slot: &MemoryRegion) -> io::Result<usize> {
    let mut entries = vec![0; (slot.len / PAGE_SIZE * 8) as usize];
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entries, slot.host_addr / PAGE_SIZE * 8)?;
    let present = |entry: &&[u8; 8]| Page::from(u64::from_le_bytes(**entry)).present;
    Ok(entries.as_chunks().0.iter().filter(present).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_what_is_listed() {
        bare::tests::assert_bytes_are_what_is_said(&PROGRAM, 64, START);
    }

    #[test]
    fn a_page_exists_once_it_is_written() {
        let memory = vm_memory::GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
        let slot = bare::regions(&memory).unwrap()[0];
        assert_eq!(pages(&slot).unwrap(), 0);
        memory.write_obj(1u8, GuestAddress(0x1000)).unwrap();
        assert!(page_of(slot.host_addr + 0x1000).unwrap().present);
        assert!(pages(&slot).unwrap() >= 1);
    }
}
