//! What has been sampled.

use std::collections::HashMap;
use std::time::Duration;

use super::task::{self, Name, Tasks};
use super::unwind::{Stack, Unwinder};
use crate::arch::x86_64::kernel::Symbols;
use crate::hypervisor::activity::Doing;

/// How many different stacks are kept for a vCPU; of more only the innermost function.
const MAX_STACKS: usize = 100_000;

/// Where a vCPU was found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Found {
    /// In the kernel, at these functions, the innermost first.
    Kernel(Box<[u64]>),
    /// In the kernel, or before it, where no symbol is.
    Unknown(u64),
    /// In the program with these page tables, and its name if that is known.
    Program(u64, Option<Name>),
    /// Outside of the guest.
    Outside(Doing),
}

/// What has been found of one vCPU.
pub(super) struct Samples {
    pub unwinder: Option<Unwinder>,
    pub tasks: Option<Tasks>,
    counts: HashMap<Found, u64>,
    /// Stacks of the kernel, and those with a guess.
    pub stacks: u64,
    pub guessed: u64,
    /// The vCPU thread's time for its samples.
    pub spent: Duration,
}

impl Samples {
    pub fn new(unwinder: Option<Unwinder>, tasks: Option<Tasks>) -> Self {
        Self { unwinder, tasks, counts: HashMap::new(), stacks: 0, guessed: 0, spent: Duration::ZERO }
    }

    pub fn count(&mut self, mut found: Found) {
        if self.counts.len() >= MAX_STACKS
            && !self.counts.contains_key(&found)
            && let Found::Kernel(functions) = &mut found
        {
            *functions = functions.iter().copied().take(1).collect();
        }
        *self.counts.entry(found).or_default() += 1;
    }

    pub fn count_stack(&mut self, stack: Stack) {
        self.stacks += 1;
        self.guessed += u64::from(stack.guessed);
        self.count(Found::Kernel(stack.functions.into()));
    }
}

/// What is told besides the stacks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Samples of all vCPUs.
    pub samples: u64,
    /// Samples of kernel stacks.
    pub stacks: u64,
    /// Kernel stacks of which a caller was guessed.
    pub guessed: u64,
    /// Ticks, of all vCPUs, that found the one before unanswered, or came too late to be told apart from the next.
    pub missed: u64,
    /// How long was sampled.
    pub duration: Duration,
    /// Time of the vCPUs' threads for the samples, of all vCPUs.
    pub spent: Duration,
    /// Samples a second and vCPU that were asked for.
    pub hz: u32,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Whether the kernel's symbols were known.
    pub symbols: bool,
}

impl Totals {
    /// Samples a second and vCPU.
    pub fn achieved_hz(&self) -> f64 {
        let seconds = self.duration.as_secs_f64() * f64::from(self.vcpus);
        if seconds > 0.0 { self.samples as f64 / seconds } else { 0.0 }
    }

    /// Which part of the vCPUs' time was spent on samples.
    pub fn share(&self) -> f64 {
        let seconds = self.duration.as_secs_f64() * f64::from(self.vcpus);
        if seconds > 0.0 { self.spent.as_secs_f64() / seconds } else { 0.0 }
    }
}

/// A finished profile.
#[derive(Debug)]
pub struct Profile {
    /// Stacks, the outermost frame first, separated by semicolons, with their number of samples: sorted.
    pub folded: Vec<String>,
    /// What is told besides.
    pub totals: Totals,
}

/// Folds one vCPU's samples, below `above`. `outside` names what a vCPU does outside of the guest.
pub(super) fn fold(
    samples: &Samples,
    above: Option<&str>,
    symbols: Option<&Symbols>,
    outside: impl Fn(Doing) -> String,
) -> HashMap<String, u64> {
    let name = |address: u64| {
        let function = symbols.and_then(|symbols| symbols.function(address));
        function.map_or_else(|| format!("{address:#x}"), |name| clean(&name))
    };
    let mut folded = HashMap::new();
    for (found, count) in &samples.counts {
        let mut frames: Vec<String> = above.map(str::to_owned).into_iter().collect();
        match found {
            Found::Kernel(functions) => {
                frames.push("kernel".into());
                frames.extend(functions.iter().rev().map(|start| name(*start)));
            }
            Found::Unknown(address) => {
                frames.push("kernel".into());
                frames.push(format!("no symbol near {:#x}", address & !0xfff));
            }
            Found::Program(table, name) => {
                let name = name.as_ref().map(task::text).filter(|name| !name.is_empty());
                frames.push("programs".into());
                frames.extend(name);
                frames.push(format!("page table {table:#x}"));
            }
            Found::Outside(doing) => frames.extend(outside(*doing).split(';').map(str::to_owned)),
        }
        *folded.entry(frames.join(";")).or_default() += count;
    }
    folded
}

/// Without what separates frames.
fn clean(name: &str) -> String {
    name.chars().map(|c| if c == ';' || c.is_whitespace() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_are_folded_from_the_outside_in() {
        let map = b"0000000000001000 T main\n0000000000002000 T a;b c\n0000000000003000 T end\n";
        let symbols = Symbols::from_system_map(&map[..]).unwrap();
        let mut samples = Samples::new(None, None);
        for _ in 0..3 {
            samples.count_stack(Stack { functions: vec![0x2000, 0x1000], guessed: false });
        }
        samples.count_stack(Stack { functions: vec![0x2000], guessed: true });
        samples.count(Found::Program(0x7000, None));
        samples.count(Found::Program(0x8000, Some(*b"sh\0\0\0\0\0\0\0\0\0\0\0\0\0\0")));
        samples.count(Found::Unknown(0x1234));
        samples.count(Found::Outside(Doing::Port(0x3f8)));
        samples.count(Found::Outside(Doing::Port(0x3f9)));
        let folded = fold(&samples, Some("vCPU 1"), Some(&symbols), |_| "Tandem;serial".into());
        let expected = [
            ("vCPU 1;kernel;main;a?b?c", 3),
            ("vCPU 1;kernel;a?b?c", 1),
            ("vCPU 1;programs;page table 0x7000", 1),
            ("vCPU 1;programs;sh;page table 0x8000", 1),
            ("vCPU 1;kernel;no symbol near 0x1000", 1),
            ("vCPU 1;Tandem;serial", 2),
        ];
        assert_eq!(folded, expected.map(|(stack, count)| (stack.to_owned(), count)).into());
        assert_eq!((samples.stacks, samples.guessed), (4, 1));
    }

    #[test]
    fn too_many_stacks_lose_their_callers() {
        let mut samples = Samples::new(None, None);
        for outer in 0..2 * MAX_STACKS as u64 {
            samples.count_stack(Stack { functions: vec![1, outer], guessed: false });
        }
        assert!(samples.counts.len() <= MAX_STACKS + 1);
        assert_eq!(samples.counts.values().sum::<u64>(), 2 * MAX_STACKS as u64);
    }

    #[test]
    fn rates_and_shares_are_for_each_vcpu() {
        let totals = Totals {
            samples: 4000,
            duration: Duration::from_secs(2),
            spent: Duration::from_millis(40),
            vcpus: 2,
            ..Totals::default()
        };
        assert_eq!((totals.achieved_hz(), totals.share()), (1000.0, 0.01));
        assert_eq!((Totals::default().achieved_hz(), Totals::default().share()), (0.0, 0.0));
    }
}
