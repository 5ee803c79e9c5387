//! The name of the program that a vCPU runs, from Linux' own variables: `pcpu_hot`, or `current_task` before Linux 6.2 and
//! after 6.14, begins with the vCPU's current task, and the name lies where the first task has its own.

use crate::arch::x86_64::kernel::Symbols;
use crate::arch::x86_64::space::Space;

/// Length of a task's name (TASK_COMM_LEN), with the NUL byte that ends it.
const NAME_LEN: usize = 16;
/// The first task's name.
const FIRST: &[u8] = b"swapper";
/// A task is looked at up to here for its name.
const TASK_LEN: usize = 16 << 10;
/// How often the first task is looked at for a name: it is there before the first program.
const TRIES: u32 = 8;

/// A task's name; NUL bytes at its end are none of it.
pub(super) type Name = [u8; NAME_LEN];

/// Where a kernel keeps its tasks.
#[derive(Debug)]
pub(super) struct Tasks {
    first: u64,
    /// In each processor's area.
    current: u64,
    /// The areas' addresses.
    areas: u64,
    /// Offset of the name in a task, once known.
    name: Option<u64>,
    tries: u32,
}

impl Tasks {
    /// None if the kernel has no such variables.
    pub fn new(symbols: &Symbols) -> Option<Self> {
        Some(Self {
            first: symbols.variable("init_task")?,
            current: symbols.variable("pcpu_hot").or_else(|| symbols.variable("current_task"))?,
            areas: symbols.variable("__per_cpu_offset")?,
            name: None,
            tries: 0,
        })
    }

    /// The name of the task that runs on this vCPU.
    pub fn name(&mut self, space: &Space<'_>, vcpu: u8) -> Option<Name> {
        let offset = self.offset(space)?;
        let [area]: [u64; 1] = space.read_u64s(self.areas.wrapping_add(u64::from(vcpu) * 8))?;
        let [task]: [u64; 1] = space.read_u64s(area.wrapping_add(self.current))?;
        let mut name = Name::default();
        space.read(task.wrapping_add(offset), &mut name)?;
        Some(name)
    }

    fn offset(&mut self, space: &Space<'_>) -> Option<u64> {
        if self.name.is_none() && self.tries < TRIES {
            self.tries += 1;
            let mut task = vec![0; TASK_LEN];
            let read = space.read_some(self.first, &mut task);
            task.truncate(read);
            let found = task.windows(FIRST.len()).position(|window| window == FIRST);
            self.name = found.and_then(|offset| u64::try_from(offset).ok());
        }
        self.name
    }
}

/// A name for people; what is no letter of ASCII's, or separates frames, is a question mark.
pub(super) fn text(name: &Name) -> String {
    let bytes = name.iter().take_while(|byte| **byte != 0);
    bytes.map(|byte| if byte.is_ascii_graphic() && *byte != b';' { char::from(*byte) } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_sregs;
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;

    /// 2 MiB, each address mapped to itself; the variables are at `0x10000`, `0x20000`, and `0x100` in an area.
    fn guest(area: u64, task: u64) -> (GuestMemoryMmap, Tasks) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        for (at, value) in [(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x83), (0x2_0008, area)] {
            memory.write_obj::<u64>(value, GuestAddress(at)).unwrap();
        }
        memory.write_slice(b"swapper/0", GuestAddress(0x1_0000 + 0x7b8)).unwrap();
        memory.write_obj(task, GuestAddress(0x5_0100)).unwrap();
        memory.write_slice(b"a;sh\x01\0old", GuestAddress(0x6_0000 + 0x7b8)).unwrap();
        let map = b"10000 D init_task\n100 A pcpu_hot\n20000 D __per_cpu_offset\n1000 T code\n";
        (memory, Tasks::new(&Symbols::from_system_map(&map[..]).unwrap()).unwrap())
    }

    fn name(area: u64, task: u64) -> Option<Name> {
        let (memory, mut tasks) = guest(area, task);
        let space = Space::new(&memory, &kvm_sregs { cr3: 0x1000, ..kvm_sregs::default() });
        tasks.name(&space, 1)
    }

    #[test]
    fn the_current_task_has_its_name_where_the_first_has() {
        assert_eq!(name(0x5_0000, 0x6_0000).map(|name| text(&name)).as_deref(), Some("a?sh?"));
        assert_eq!(name(0x5_0000, 0x80_0000_0000), None);
        assert_eq!(name(0x80_0000_0000, 0x6_0000), None);
    }

    proptest! {
        #[test]
        fn any_variables_are_survived(area: u64, task: u64) {
            let _ = name(area, task);
            let _ = name(0x5_0000, task);
        }
    }
}
