//! `tandem run --profile`: where the profile goes, and what is said about it.

use std::fs::{OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use inferno::flamegraph;
use tempfile::NamedTempFile;
use thiserror::Error;

use super::summary::symbols;
use super::{RunArgs, report, say};
use crate::machine::config::MachineConfig;
use crate::machine::outcome::exit_code;
use crate::profile::{Options, Profile, Totals};

/// Samples a second and vCPU unless told otherwise. A prime, so as not to keep step with the guest's timer.
const DEFAULT_HZ: u32 = 997;

/// The profile cannot be written.
#[derive(Debug, Error)]
pub(super) enum ProfileError {
    #[error("--profile {}: the file cannot be written; name one in a directory where you may write", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot write the profile to {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Where the profile goes.
pub(super) struct Output {
    path: PathBuf,
    target: Target,
    title: String,
}

enum Target {
    /// Replaces the file, once it is complete.
    Replace(NamedTempFile),
    /// A special file, as `/dev/stdout`.
    Special(std::fs::File),
}

/// Has the machine sampled, if that is asked for, and returns where to write it to.
pub(super) fn prepare(args: &RunArgs, config: &mut MachineConfig) -> Result<Option<Output>, ProfileError> {
    let Some(path) = args.profile.as_ref().map(PathBuf::from) else { return Ok(None) };
    let target = match open(&path) {
        Ok(target) => target,
        Err(source) => return Err(ProfileError::Open { path, source }),
    };
    let symbols = symbols(config).map(Arc::new);
    config.profile = Some(Options { hz: args.hz.unwrap_or(DEFAULT_HZ), symbols });
    let title = format!("Guest: {}; vCPUs: {}", config.guest_title(), config.cpus);
    Ok(Some(Output { path, target, title }))
}

fn open(path: &Path) -> io::Result<Target> {
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(metadata) if !metadata.is_file() => {
            Ok(Target::Special(OpenOptions::new().write(true).open(path)?))
        }
        _ => {
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            // As any other file, if the umask lets it.
            let mut builder = tempfile::Builder::new();
            builder.prefix(".tandem-").permissions(Permissions::from_mode(0o666));
            builder.tempfile_in(directory.unwrap_or(Path::new("."))).map(Target::Replace)
        }
    }
}

/// Writes what was asked for and found; the exit code, which is `code` unless the run succeeded and this fails.
pub(super) fn write(output: Option<Output>, profile: Option<&Profile>, code: u8) -> u8 {
    match output.zip(profile).map(|(output, profile)| output.write(profile)) {
        Some(Err(error)) => {
            report(&error);
            if code == 0 { exit_code::SETUP } else { code }
        }
        Some(Ok(())) | None => code,
    }
}

impl Output {
    /// Writes it, and says on stderr what it cost.
    fn write(self, profile: &Profile) -> Result<(), ProfileError> {
        let mut contents = Vec::new();
        let folded = matches!(self.path.extension().and_then(|end| end.to_str()), Some("folded" | "txt"));
        let drawn = if folded {
            profile.folded.iter().try_for_each(|line| writeln!(contents, "{line}"))
        } else {
            draw(profile, self.title, &mut contents)
        };
        let written = drawn.and_then(|()| match self.target {
            Target::Special(mut file) => file.write_all(&contents),
            Target::Replace(mut file) => {
                file.write_all(&contents)?;
                file.persist(&self.path)?;
                Ok(())
            }
        });
        if let Err(source) = written {
            return Err(ProfileError::Write { path: self.path, source });
        }
        tell(&profile.totals, &self.path);
        Ok(())
    }
}

/// Draws the flame graph.
fn draw(profile: &Profile, title: String, to: &mut Vec<u8>) -> io::Result<()> {
    let mut options = flamegraph::Options::default();
    options.title = title;
    options.subtitle = Some(summary(&profile.totals));
    options.text_truncate_direction = flamegraph::TextTruncateDirection::Right;
    options.deterministic = true;
    options.hash = true;
    // It refuses a graph without samples.
    let nothing = ["no samples 1".to_owned()];
    let lines = if profile.folded.is_empty() { &nothing[..] } else { &profile.folded };
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), to)
}

/// How much was sampled.
fn summary(totals: &Totals) -> String {
    let Totals { samples, duration, hz, .. } = totals;
    let achieved = totals.achieved_hz();
    format!(
        "{samples} samples in {:.3} s: {achieved:.0} Hz for each vCPU of {hz} asked",
        duration.as_secs_f64()
    )
}

fn tell(totals: &Totals, path: &Path) {
    say(format_args!("tandem: profile: {}; {}", summary(totals), path.display()));
    let (spent, share) = (totals.spent.as_secs_f64() * 1e3, totals.share() * 100.0);
    let each = if totals.samples > 0 { spent * 1e3 / totals.samples as f64 } else { 0.0 };
    say(format_args!(
        "tandem: profile: sampling took {spent:.1} ms of the vCPUs' time, {share:.1} % of the run, {each:.1} us for each \
         sample; {} were missed",
        totals.missed
    ));
    if !totals.symbols {
        say(
            "tandem: profile: the kernel has no symbols, so its code is told by address alone; a System.map next to it would do",
        );
    } else if totals.guessed > 0 {
        let part = totals.guessed as f64 / totals.stacks.max(1) as f64 * 100.0;
        say(format_args!(
            "tandem: profile: in {part:.1} % of the kernel's stacks a caller is guessed from what lies on the stack"
        ));
    }
}
