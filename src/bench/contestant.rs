//! What the bench needs of a contestant. The runner does the rest: pipes, stamps, the time limit, waiting, counting.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::model::ContestantInfo;

/// Descriptor on which a run that can reports its milestones, one JSON object per line (`tandem run --report-fd`).
pub const REPORT_FD: i32 = 3;
/// Descriptor whose end of file lets a run go on that is held for its memory to be measured (`tandem run --hold-fd`).
pub const HOLD_FD: i32 = 4;

/// One run of a contestant.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// Unique among all runs of all benches on this host; fit for a container's name.
    pub id: &'a str,
    /// The run is to be held at the workload's end ([`HOLD_FD`] is open).
    pub hold: bool,
}

/// The process to create for a run.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    /// Absolute path; in the new root if there is one.
    pub program: PathBuf,
    /// Arguments, the program's name first.
    pub args: Vec<OsString>,
    /// The environment, whole.
    pub env: Vec<(OsString, OsString)>,
    /// Root directory of the process, or that of the bench.
    pub root: Option<PathBuf>,
    /// Mount namespace of the process, or that of the bench.
    pub mount_namespace: Option<Arc<OwnedFd>>,
    /// It writes to [`REPORT_FD`].
    pub reports: bool,
    /// It honours [`HOLD_FD`].
    pub holds: bool,
    /// Its standard output is a guest's console, on which `tandem-init` tells at last what became of the workload
    /// (`milestone/probe.rs`): the process's own status says nothing of that.
    pub console: bool,
    /// It is the workload itself, which the runner can hold at its exit by ptrace.
    pub traceable: bool,
}

/// Why a contestant does not take part, as the tables tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip(pub String);

/// A way to run the workload.
pub trait Contestant {
    /// Who it is, with the command line of a run. `skipped` is the runner's to fill.
    fn info(&self) -> ContestantInfo;

    /// Makes what all runs share: bundles, images. Not measured.
    ///
    /// # Errors
    /// It cannot take part; the reason. What was made until then is removed by [`Self::finish`].
    fn prepare(&mut self) -> Result<(), Skip>;

    /// Makes ready one run, not measured, and says what to execute.
    ///
    /// # Errors
    /// The run fails for this reason.
    fn launch(&mut self, run: Run<'_>) -> Result<Launch, String>;

    /// Removes what is left of a run that was killed: containers, state directories, cgroups. Not called after an
    /// ordinary end.
    fn discard(&mut self, run: Run<'_>);

    /// The cgroup of a run that is going on, for a runtime whose processes are not descendants of the spawned one: their
    /// memory is read there.
    fn cgroup(&self, _run: Run<'_>) -> Option<PathBuf> {
        None
    }

    /// A daemon does part of the work: the processor time of the spawned process says nothing, and is left out.
    fn has_daemon(&self) -> bool {
        false
    }

    /// Removes all that [`Self::prepare`] made. What a killed bench has left is removed by the next one's `prepare`.
    fn finish(&mut self);
}
