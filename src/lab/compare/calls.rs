//! System calls that starting took on each side. They are counted in runs of their own, because tracing is slow.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use syscalls::Sysno;

use super::LIMIT;
use crate::bench::calls::{Call, CountError, Counted, Part, Until, count};
use crate::bench::contestant::Launch;
use crate::hypervisor::requests;
use crate::lab::LabError;
use crate::lab::side::{self, Given, Side};
use crate::lab::stage::Stage;

/// A guest that takes longer is not waited for: what its VMM did until then is told.
const WITHIN: Duration = Duration::from_secs(10);
/// Flags of clone(2) and unshare(2) that make namespaces.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;
const ENTERS_THE_GUEST: &str = "KVM_RUN";
const GIVES_MEMORY: &str = "KVM_SET_USER_MEMORY_REGION";

const KVM: &str = "KVM";
const NEW_NAMESPACES: &str = "namespaces";
const OTHERS: &str = "others";

/// Calls that belong together.
struct Kind {
    name: &'static str,
    /// Those of them that are told by their names.
    calls: &'static [&'static str],
    /// Whether the table says which they were.
    telling: bool,
}

/// The most telling first.
const KINDS: &[Kind] = &[
    Kind { name: KVM, calls: &[], telling: true },
    Kind { name: NEW_NAMESPACES, calls: &["setns"], telling: true },
    Kind {
        name: "mounts",
        calls: &[
            "mount",
            "umount2",
            "pivot_root",
            "open_tree",
            "move_mount",
            "mount_setattr",
            "fsopen",
            "fsconfig",
            "fsmount",
            "fspick",
        ],
        telling: true,
    },
    Kind {
        name: "privileges",
        calls: &["prctl", "capget", "capset", "seccomp", "setgroups", "setresuid", "setresgid"],
        telling: true,
    },
    Kind {
        name: "processes",
        calls: &[
            "fork",
            "vfork",
            "clone",
            "clone3",
            "execve",
            "execveat",
            "exit",
            "exit_group",
            "wait4",
            "waitid",
        ],
        telling: true,
    },
    Kind {
        name: "memory",
        calls: &["mmap", "munmap", "mremap", "mprotect", "madvise", "brk", "memfd_create"],
        telling: false,
    },
    Kind {
        name: "files",
        calls: &[
            "open",
            "openat",
            "close",
            "close_range",
            "read",
            "write",
            "pread64",
            "pwrite64",
            "lseek",
            "stat",
            "fstat",
            "newfstatat",
            "statfs",
            "readlink",
            "getdents64",
            "fcntl",
            "dup2",
            "dup3",
            "pipe2",
            "mkdir",
            "mkdirat",
            "mknodat",
            "symlinkat",
            "chdir",
            "fchdir",
            "umask",
        ],
        telling: false,
    },
    Kind { name: OTHERS, calls: &[], telling: false },
];
/// So many names of a telling kind are in the table.
const NAMED: usize = 3;

/// What a side's start took.
pub(super) struct Calls {
    pub(super) text: String,
    pub(super) facts: Value,
    /// Ranges of memory that KVM was given until the guest was entered.
    pub(super) memory_slots: Option<u64>,
}

/// Counts them.
///
/// # Errors
/// The side cannot be run or traced; the demonstration is over.
pub(super) fn of(stage: &Stage, side: Side, limited: bool) -> Result<Calls, LabError> {
    let given = Given { memory: limited.then_some(LIMIT), ..Given::default() };
    let (until, script) = match side {
        // The shell is to the command what Tandem is on the other sides.
        Side::Host => (Until::Executed { depth: 1 }, format!("'{}' true; exit", stage.busybox()?.display())),
        // Tandem, the init, the command.
        Side::Container => (Until::Executed { depth: 2 }, "true".into()),
        Side::Vm => (Until::Output, "echo begun".into()),
    };
    let launch = launch(&side::command(stage, side, &given, &script)?);
    let within = WITHIN.min(stage.deadline().saturating_duration_since(Instant::now()));
    let counted = count(&launch, until, within, || stage.interrupted().is_some());
    let counted = counted.map_err(|source| match (stage.interrupted(), &source) {
        (Some(signal), CountError::Interrupted) => LabError::Interrupted(signal),
        _ => LabError::Calls { what: side.phrase().into(), source },
    })?;
    Ok(if side == Side::Vm { of_vm(&counted) } else { of_processes(side, &counted) })
}

fn launch(command: &Command) -> Launch {
    let program = command.get_program();
    let args = [program].into_iter().chain(command.get_args());
    Launch {
        program: program.into(),
        args: args.map(Into::into).collect(),
        env: std::env::vars_os().collect(),
        ..Launch::default()
    }
}

fn of_processes(side: Side, counted: &Counted) -> Calls {
    let all = Tally::of(&counted.calls);
    let of = |depth, executed| {
        let part = Part { depth, executed };
        counted.calls.iter().filter(|call| call.part == part).count()
    };
    // In the order in which they come to be.
    let by_process: Vec<(&str, usize)> = match side {
        Side::Host => vec![("shell", of(0, true)), ("its child", of(1, false))],
        _ => vec![
            ("tandem", of(0, true)),
            ("its child", of(1, false)),
            ("init", of(1, true)),
            ("init's child", of(2, false)),
        ],
    };
    let each: Vec<_> = by_process.iter().map(|(name, count)| format!("{name} {count}")).collect();
    let late = if counted.reached { "" } else { " (it took too long)" };
    Calls {
        text: format!(
            "{} system calls until the command was executed{late} ({}): {}",
            all.total,
            each.join(", "),
            all.text()
        ),
        facts: json!({
            "until": "execution of the command's program",
            "reached": counted.reached,
            "total": all.total,
            "by_process": by_process.into_iter().collect::<BTreeMap<_, _>>(),
            "by_kind": all.by_kind(),
            "by_name": all.by_name(),
        }),
        memory_slots: None,
    }
}

fn of_vm(counted: &Counted) -> Calls {
    let entry = counted.calls.iter().position(|call| name(call) == ENTERS_THE_GUEST);
    let (before, after) = counted.calls.split_at(entry.unwrap_or(counted.calls.len()));
    let (all, before, after) = (Tally::of(&counted.calls), Tally::of(before), Tally::of(after));
    let until = match (counted.reached, entry) {
        (true, _) => "then until the command's output".to_owned(),
        (false, Some(_)) => format!("then in {} s, without the command's output", WITHIN.as_secs()),
        (false, None) => format!("the guest was not entered within {} s", WITHIN.as_secs()),
    };
    Calls {
        text: format!(
            "{} system calls of tandem until the guest was entered: {}\n{until} {}: {}",
            before.total,
            before.text(),
            after.total,
            after.text()
        ),
        facts: json!({
            "until": "first output of the command",
            "reached": counted.reached,
            "total": all.total,
            "by_kind": all.by_kind(),
            "by_name": all.by_name(),
            "before_the_guest": {
                "total": before.total,
                "by_kind": before.by_kind(),
                "by_name": before.by_name(),
            },
        }),
        memory_slots: before.by_name().get(GIVES_MEMORY).copied(),
    }
}

/// Calls by kind, in the order of [`KINDS`], and name.
struct Tally {
    total: usize,
    counts: BTreeMap<(usize, &'static str), u64>,
}

impl Tally {
    fn of(calls: &[Call]) -> Self {
        let mut counts = BTreeMap::new();
        for call in calls {
            let name = name(call);
            *counts.entry((kind(call, name), name)).or_insert(0) += 1;
        }
        Self { total: calls.len(), counts }
    }

    /// Kinds that there are; of the telling ones the calls that came most often.
    fn text(&self) -> String {
        let kinds = KINDS.iter().enumerate().filter_map(|(index, kind)| {
            let mut names: Vec<_> = self.counts.iter().filter(|((of, _), _)| *of == index).collect();
            let total: u64 = names.iter().map(|(_, count)| **count).sum();
            names.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
            let mut named: Vec<_> =
                names.iter().take(NAMED).map(|((_, name), count)| format!("{name} {count}")).collect();
            if names.len() > NAMED {
                named.push("...".into());
            }
            let named = if kind.telling { format!(" ({})", named.join(", ")) } else { String::new() };
            (total > 0).then(|| format!("{} {total}{named}", kind.name))
        });
        kinds.collect::<Vec<_>>().join(", ")
    }

    fn by_kind(&self) -> BTreeMap<&'static str, u64> {
        let mut kinds = BTreeMap::new();
        for ((index, _), count) in &self.counts {
            let kind = KINDS.get(*index).map_or(OTHERS, |kind| kind.name);
            *kinds.entry(kind).or_insert(0) += count;
        }
        kinds
    }

    fn by_name(&self) -> BTreeMap<&'static str, u64> {
        let mut names = BTreeMap::new();
        for ((_, name), count) in &self.counts {
            *names.entry(*name).or_insert(0) += count;
        }
        names
    }
}

/// As strace(1) has it; of KVM's ioctls the request.
fn name(call: &Call) -> &'static str {
    if call.number == libc::SYS_ioctl.cast_unsigned()
        && let Some(name) = call.detail.and_then(requests::name)
    {
        return name;
    }
    let known = usize::try_from(call.number).ok().and_then(Sysno::new);
    known.map_or("unknown", |known| known.name())
}

/// Index in [`KINDS`].
fn kind(call: &Call, name: &str) -> usize {
    let of_kvm = call.number == libc::SYS_ioctl.cast_unsigned() && name != "ioctl";
    let makes_namespaces =
        matches!(name, "clone" | "clone3" | "unshare") && call.detail.unwrap_or(0) & NAMESPACES != 0;
    let wanted = match (of_kvm, makes_namespaces) {
        (true, _) => Some(KVM),
        (_, true) => Some(NEW_NAMESPACES),
        _ => None,
    };
    let is = |kind: &Kind| wanted.map_or(kind.calls.contains(&name), |wanted| kind.name == wanted);
    KINDS.iter().position(is).unwrap_or(KINDS.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(depth: usize, executed: bool, number: i64, detail: Option<u64>) -> Call {
        Call { part: Part { depth, executed }, number: number.cast_unsigned(), detail }
    }

    #[test]
    fn calls_are_told_by_process_and_kind() {
        let calls = vec![
            call(0, true, libc::SYS_clone3, Some(libc::CLONE_NEWNS as u64)),
            // A thread.
            call(0, true, libc::SYS_clone3, Some(libc::CLONE_VM as u64)),
            call(1, false, libc::SYS_mount, None),
            call(1, false, libc::SYS_mount, None),
            call(1, false, libc::SYS_open_tree, None),
            call(1, true, libc::SYS_getpid, None),
            call(2, false, 9999, None),
        ];
        let calls = of_processes(Side::Container, &Counted { calls, reached: true });
        let (head, kinds) = calls.text.split_once(": ").unwrap();
        assert_eq!(
            head,
            "7 system calls until the command was executed (tandem 2, its child 3, init 1, init's child 1)"
        );
        assert_eq!(
            kinds,
            "namespaces 1 (clone3 1), mounts 3 (mount 2, open_tree 1), processes 1 (clone3 1), others 2"
        );
        assert_eq!(calls.facts["by_kind"]["others"], 2);
        assert_eq!(calls.facts["by_name"]["clone3"], 2);
        assert_eq!(calls.facts["by_name"]["unknown"], 1);
    }

    #[test]
    fn a_virtual_machine_is_set_up_before_it_is_entered() {
        let kvm = |request| call(0, true, libc::SYS_ioctl, Some(request));
        let calls = vec![
            kvm(0xae01),
            kvm(0x4020_ae46),
            // Of a terminal.
            kvm(0x5401),
            kvm(0xae80),
            kvm(0xae80),
            call(0, true, libc::SYS_write, None),
        ];
        let calls = of_vm(&Counted { calls, reached: true });
        assert_eq!(
            calls.text,
            "3 system calls of tandem until the guest was entered: KVM 2 (KVM_CREATE_VM 1, \
             KVM_SET_USER_MEMORY_REGION 1), others 1\nthen until the command's output 3: KVM 2 (KVM_RUN 2), files 1"
        );
        assert_eq!(calls.memory_slots, Some(1));
        assert_eq!(
            (&calls.facts["total"], &calls.facts["before_the_guest"]["total"]),
            (&json!(6), &json!(3))
        );
    }
}
