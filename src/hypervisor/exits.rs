//! How often guests leave guest mode, by reason.

use super::Exit;

/// Exits of vCPUs by reason. Counting costs an addition each: a vCPU's thread has its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exits {
    /// Accesses to ports that a device, or nobody, answers.
    pub io: u64,
    /// Accesses to addresses that no memslot backs.
    pub mmio: u64,
    /// HLT, where it exits.
    pub halt: u64,
    /// Signals and kicks: timers, interrupts to inject, the machine's end.
    pub interrupted: u64,
    /// Exceptions that a ring3 kernel's stubs handed over.
    pub exception: u64,
    /// Requests of a ring3 kernel.
    pub request: u64,
    /// Ports that a ring3 guest's programs may not use.
    pub refused: u64,
    /// All others.
    pub other: u64,
}

impl Exits {
    /// Counts one that [`super::Vcpu::run`] returned.
    pub fn count(&mut self, exit: &Exit<'_>) {
        let counter = match exit {
            Exit::Port { .. } => &mut self.io,
            Exit::MmioRead { .. } | Exit::MmioWrite { .. } => &mut self.mmio,
            Exit::Halt => &mut self.halt,
            Exit::Interrupted => &mut self.interrupted,
            Exit::Shutdown
            | Exit::Lockup
            | Exit::SystemEvent { .. }
            | Exit::InternalError { .. }
            | Exit::FailEntry { .. }
            | Exit::Other { .. } => &mut self.other,
        };
        *counter += 1;
    }

    /// Adds those of another vCPU.
    pub fn add(&mut self, other: &Self) {
        self.io += other.io;
        self.mmio += other.mmio;
        self.halt += other.halt;
        self.interrupted += other.interrupted;
        self.exception += other.exception;
        self.request += other.request;
        self.refused += other.refused;
        self.other += other.other;
    }

    /// Names and numbers of those that there were.
    pub fn by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("io", self.io),
            ("mmio", self.mmio),
            ("halt", self.halt),
            ("interrupted", self.interrupted),
            ("exception", self.exception),
            ("request", self.request),
            ("refused", self.refused),
            ("other", self.other),
        ]
        .into_iter()
        .filter(|(_, count)| *count != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_exit_is_counted_once() {
        let mut exits = Exits::default();
        let all = [
            Exit::MmioRead { addr: 0, data: &mut [] },
            Exit::MmioWrite { addr: 0, data: &[] },
            Exit::Halt,
            Exit::Interrupted,
            Exit::Shutdown,
        ];
        all.iter().for_each(|exit| exits.count(exit));
        let mut sum = exits;
        sum.add(&exits);
        let expected = [("mmio", 4), ("halt", 2), ("interrupted", 2), ("other", 2)];
        assert_eq!(sum.by_reason().collect::<Vec<_>>(), expected);
    }
}
