//! Calls of a runtime's own commands outside of measurements, bounded in time.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use thiserror::Error;

use crate::bench::shell::shell_words;

/// Why a call was of no use.
#[derive(Debug, Error)]
pub enum ToolError {
    /// It cannot be started or waited for.
    #[error("cannot run {line}")]
    Run { line: String, source: io::Error },
    /// It was killed for being slow.
    #[error("{line} was killed after {} s", limit.as_secs())]
    Late { line: String, limit: Duration },
    /// It ended with a failure; what it said last.
    #[error("{line} failed: {said}")]
    Failed { line: String, said: String },
}

/// Runs a command and returns its standard output, which must be short (at most a pipe's 64 KiB), as must its errors.
///
/// # Errors
/// It cannot be run, fails, or takes longer than `limit`.
pub fn call(command: &mut Command, limit: Duration) -> Result<String, ToolError> {
    let line = shell_line(
        Path::new(command.get_program()),
        &command.get_args().map(OsStr::to_owned).collect::<Vec<_>>(),
    );
    let failed = |source| ToolError::Run { line: line.clone(), source };
    let stdio = || Stdio::piped();
    let mut child = command.stdout(stdio()).stderr(stdio()).process_group(0).spawn().map_err(failed)?;
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if Instant::now() >= deadline {
            kill(&mut child);
            return Err(ToolError::Late { line, limit });
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let output = taken(child.stdout.take());
    if status.success() {
        return Ok(output);
    }
    let said = taken(child.stderr.take());
    let said = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it does not say why");
    Err(ToolError::Failed { line, said: said.trim().to_owned() })
}

fn kill(child: &mut Child) {
    if let Ok(group) = i32::try_from(child.id()) {
        // Fails only if the whole group has ended meanwhile.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let _ = child.wait();
}

/// What is in the pipe now: a daemon that the command has started may keep it open for ever.
fn taken<R: Read + std::os::fd::AsFd>(pipe: Option<R>) -> String {
    let Some(mut pipe) = pipe else { return String::new() };
    let mut bytes = vec![0; 64 << 10];
    let mut len = 0;
    loop {
        let mut entry = [nix::poll::PollFd::new(pipe.as_fd(), nix::poll::PollFlags::POLLIN)];
        if !matches!(nix::poll::poll(&mut entry, 0u8), Ok(1)) {
            break;
        }
        match bytes.get_mut(len..).map(|rest| pipe.read(rest)) {
            Some(Ok(count)) if count > 0 => len += count,
            _ => break,
        }
    }
    String::from_utf8_lossy(bytes.get(..len).unwrap_or_default()).into_owned()
}

/// The command line as a shell would take it.
pub fn shell_line(program: &Path, args: &[OsString]) -> String {
    shell_words(std::iter::once(program.as_os_str()).chain(args.iter().map(OsString::as_os_str)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration) -> Result<String, ToolError> {
        call(Command::new("/bin/sh").args(["-c", script]), limit)
    }

    #[test]
    fn a_call_ends_whatever_the_command_does() {
        let second = Duration::from_secs(1);
        assert_eq!(sh("echo out; echo err >&2", second * 10).unwrap(), "out\n");
        assert!(matches!(sh("sleep 60 & sleep 60", second / 10), Err(ToolError::Late { .. })));
        // Someone still holds the pipe.
        assert_eq!(sh("echo begun; sleep 3 >&1 2>&1 &", second * 10).unwrap(), "begun\n");
        let Err(ToolError::Failed { said, .. }) =
            sh("echo a >&2; echo why >&2; echo >&2; exit 3", second * 10)
        else {
            panic!("it failed");
        };
        assert_eq!(said, "why");
        let error = call(&mut Command::new("/nonexistent"), second).unwrap_err();
        assert_eq!(error.to_string(), "cannot run /nonexistent");
    }

    #[test]
    fn a_line_can_be_typed_into_a_shell() {
        let words = ["a b", "it's", "", "$x", "--plain=/dev/null"];
        let line = shell_line(Path::new("/bin/printf"), &["%s\\n".into()]);
        assert_eq!(line, r"/bin/printf '%s\n'");
        let args: Vec<OsString> = std::iter::once("%s\n").chain(words).map(Into::into).collect();
        let output = sh(&shell_line(Path::new("/usr/bin/printf"), &args), Duration::from_secs(10)).unwrap();
        assert_eq!(output.lines().collect::<Vec<_>>(), words);
    }
}
