//! unshare (util-linux) and bubblewrap: namespaces around a program, without state, cgroups or limits.

use std::ffi::OsString;

use super::Common;
use crate::bench::contestant::{Contestant, Launch, Run, Skip};
use crate::bench::model::ContestantInfo;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Unshare,
    Bubblewrap,
}

/// The adapter.
#[derive(Debug)]
pub struct Sandbox {
    common: Common,
    which: Which,
}

impl Sandbox {
    pub(super) fn unshare(common: Common) -> Self {
        Self { common, which: Which::Unshare }
    }

    pub(super) fn bubblewrap(common: Common) -> Self {
        Self { common, which: Which::Bubblewrap }
    }

    fn args(&self) -> Vec<OsString> {
        let root = self.common.task.root.clone().into_os_string();
        let mut args: Vec<OsString> = match self.which {
            Which::Unshare => {
                let mut option = OsString::from("--root=");
                option.push(&root);
                let namespaces =
                    ["--fork", "--kill-child", "--pid", "--mount", "--net", "--ipc", "--uts", "--cgroup"];
                let mut args: Vec<OsString> = namespaces.map(Into::into).to_vec();
                if !nix::unistd::geteuid().is_root() {
                    args.push("--map-root-user".into());
                }
                args.extend(["--mount-proc".into(), option]);
                args
            }
            Which::Bubblewrap => {
                let mut args =
                    vec!["--unshare-all".into(), "--die-with-parent".into(), "--ro-bind".into(), root];
                let rest =
                    ["/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--hostname", "tandem"];
                args.extend(rest.map(Into::into));
                args
            }
        };
        args.push("--".into());
        args.extend(self.common.task.command.iter().cloned());
        args
    }

    fn notes(&self) -> Vec<&'static str> {
        let mut notes = match self.which {
            Which::Unshare => {
                vec!["chroot into the root file system itself", "full privileges, nothing masked"]
            }
            Which::Bubblewrap => vec!["root file system read-only, /tmp in memory", "no seccomp filter"],
        };
        if self.common.task.cpus.is_some() || self.common.task.memory.is_some() {
            notes.push("limits do not apply: it makes no cgroup");
        }
        notes
    }
}

impl Contestant for Sandbox {
    fn info(&self) -> ContestantInfo {
        self.common.info(&self.args(), &self.notes())
    }

    fn prepare(&mut self) -> Result<(), Skip> {
        self.common.version.as_ref().map(|_| ()).map_err(|why| Skip(why.clone()))
    }

    fn launch(&mut self, _run: Run<'_>) -> Result<Launch, String> {
        let mut args = vec![self.common.program.clone().into_os_string()];
        args.extend(self.args());
        let env = self.common.task.env.clone();
        Ok(Launch { program: self.common.program.clone(), args, env, ..Launch::default() })
    }

    /// Both die with the process that was killed, and take the namespaces along.
    fn discard(&mut self, _run: Run<'_>) {}

    fn finish(&mut self) {}
}
