//! What all demonstrations use: the program, the root file system, a place for files, the output, the end of time.

use std::cell::RefCell;
use std::fs;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::LabError;
use super::side::RUN_WITHIN;
use crate::bench::signals::Signals;
use crate::container;
use crate::host::errors::chain;
use crate::host::paths::Paths;
use crate::host::process::Identity;
use crate::report::text::{Align, columns, one_line, wrapped};

/// So many runs of the slowest kind fit into the time that there is for all.
const RUNS: u32 = 5;

/// What a demonstration stands on. It has one thread.
pub struct Stage {
    /// The program `tandem`.
    pub tandem: PathBuf,
    /// Columns of a line of output.
    pub width: usize,
    paths: Paths,
    scratch: TempDir,
    out: RefCell<Box<dyn Write>>,
    signals: RefCell<Signals>,
    deadline: Instant,
    run_within: Duration,
}

impl Stage {
    /// Makes it, for at most `limit` from now on. Output goes to `out` in lines of at most `width` columns.
    ///
    /// # Errors
    /// The host refuses a directory in the cache or a descriptor.
    pub fn new(paths: &Paths, out: Box<dyn Write>, width: usize, limit: Duration) -> Result<Self, LabError> {
        let dir = paths.cache_dir().map_err(container::RootError::from)?.join("lab");
        let own = Identity::own()?;
        let failed = |source| LabError::Scratch { path: dir.clone(), source };
        fs::create_dir_all(&dir).map_err(failed)?;
        remove_stale(&dir);
        let prefix = format!("{}-", own.label());
        let scratch = tempfile::Builder::new().prefix(&prefix).tempdir_in(&dir).map_err(failed)?;
        Ok(Self {
            // By its name, which then is that of its processes; but it may have been replaced.
            tandem: std::env::current_exe()
                .ok()
                .filter(|path| path.is_file())
                .unwrap_or_else(|| "/proc/self/exe".into()),
            width,
            paths: paths.clone(),
            scratch,
            out: RefCell::new(out),
            signals: RefCell::new(Signals::new().map_err(LabError::Signals)?),
            deadline: Instant::now() + limit,
            run_within: (limit / RUNS).clamp(RUN_WITHIN, 2 * RUN_WITHIN),
        })
    }

    /// A directory on the disk of the cache that is removed at the end.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// A root file system of busybox and what the demonstration adds, made at the first call.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn small_root(&self) -> Result<PathBuf, LabError> {
        let (root, busybox) = (self.scratch().join("root"), self.busybox()?);
        let make = || {
            for dir in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
                fs::create_dir_all(root.join(dir))?;
            }
            fs::copy(&busybox, root.join("bin/busybox")).map(drop)
        };
        if !root.join("bin/busybox").is_file() {
            make().map_err(LabError::host("make a root file system"))?;
        }
        Ok(root)
    }

    /// How long one run may take.
    pub fn run_within(&self) -> Duration {
        self.run_within
    }

    /// When all has to be over.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The program that runs on each side, as a file of the host: in the built guest's root file system.
    ///
    /// # Errors
    /// No guest is built.
    pub fn busybox(&self) -> Result<PathBuf, LabError> {
        Ok(container::built(&self.paths)?.root()?.join("bin/busybox"))
    }

    /// The signal by which the user has ended it, if any.
    pub fn interrupted(&self) -> Option<Signal> {
        self.signals.borrow_mut().received()
    }

    /// Calls this with the descriptor that is readable when a signal has come.
    pub fn with_signals<T>(&self, call: impl FnOnce(BorrowedFd<'_>) -> T) -> T {
        call(self.signals.borrow().as_fd())
    }

    /// Waits, but no longer than until the deadline or a signal.
    ///
    /// # Errors
    /// [`LabError::Interrupted`].
    pub fn pause(&self, time: Duration) -> Result<(), LabError> {
        let until = (Instant::now() + time).min(self.deadline);
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if let Some(signal) = self.interrupted() {
                return Err(LabError::Interrupted(signal));
            }
            std::thread::sleep(left.min(Duration::from_millis(20)));
        }
        Ok(())
    }

    /// Writes text as it is.
    ///
    /// # Errors
    /// [`LabError::Output`].
    pub fn write(&self, text: &str) -> Result<(), LabError> {
        let mut out = self.out.borrow_mut();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(LabError::Output)
    }

    /// A heading.
    ///
    /// # Errors
    /// As [`Self::write`]; so of the others.
    pub fn heading(&self, text: &str) -> Result<(), LabError> {
        self.write(&format!("\n{}", wrapped("== ", text, 3, self.width)))
    }

    /// Words of explanation, wrapped.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn comment(&self, text: &str) -> Result<(), LabError> {
        self.write(&wrapped("# ", text, 2, self.width).replace("\n  ", "\n# "))
    }

    /// Something that was read, with what it is.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn fact(&self, what: &str, value: &str) -> Result<(), LabError> {
        let head = format!("  {what:<22}  ");
        let indent = if head.chars().count() * 2 > self.width { 6 } else { head.chars().count() };
        self.write(&wrapped(&head, &one_line(value), indent, self.width))
    }

    /// A conclusion that has been checked: said as such, or as not being so here.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn conclude(&self, holds: bool, text: &str) -> Result<(), LabError> {
        let head = if holds { "=> " } else { "=> NOT so here: " };
        self.write(&wrapped(head, text, 3, self.width))
    }

    /// What cannot be shown, and what to do about it.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn absent(&self, what: &str, why: &str) -> Result<(), LabError> {
        self.write(&wrapped("-- ", &format!("{what} cannot be shown: {}", one_line(why)), 3, self.width))
    }

    /// The result; or says what could not be shown, if the rest can go on without.
    ///
    /// # Errors
    /// What ends all.
    pub fn unless_absent<T>(&self, what: &str, result: Result<T, LabError>) -> Result<Option<T>, LabError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_local() => self.absent(what, &chain(&error)).map(|()| None),
            Err(error) => Err(error),
        }
    }

    /// Rows in columns; below each other where the output is too narrow for that.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn table(&self, rows: &[Vec<String>]) -> Result<(), LabError> {
        let lines = columns(rows, Align::Left);
        if lines.iter().all(|line| line.chars().count() + 2 <= self.width) {
            return lines.iter().try_for_each(|line| self.write(&format!("  {line}\n")));
        }
        let Some((titles, rows)) = rows.split_first() else { return Ok(()) };
        for row in rows {
            let mut cells = row.iter().zip(titles);
            if let Some((first, _)) = cells.next() {
                self.write(&format!("  {first}\n"))?;
            }
            for (cell, title) in cells.filter(|(cell, _)| !cell.is_empty()) {
                self.write(&wrapped(&format!("    {title}: "), cell, 6, self.width))?;
            }
        }
        Ok(())
    }
}

/// Removes what killed labs have left.
fn remove_stale(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let owner = entry.file_name().to_str().and_then(Identity::from_label);
        if owner.is_some_and(|owner| !owner.lives()) {
            // What cannot be removed is another user's.
            let _: io::Result<()> = fs::remove_dir_all(entry.path());
        }
    }
}
