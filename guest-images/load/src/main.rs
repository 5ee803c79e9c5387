//! Steady work of known kinds, measured from inside: the same program in processes, containers and guests.
//!
//! `tandem-load run MILLISECONDS LOAD...` makes each load in turn for about so long, and writes a JSON object per line to
//! standard output: `hello`, then `begin` and `end` (or `unable`) of each load, then `done`. Around each measurement it
//! sleeps for [`PAUSE_MS`], so that who reads the lines can look at the host's clocks while nothing goes on.

mod load;
mod memory;
mod pairs;
mod system;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use load::{Load, Measured};

/// Milliseconds between `begin` and the measurement, and between `end` and what comes next.
const PAUSE_MS: u64 = 10;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let mut words = args.iter().skip(1).map(String::as_str);
    let result = match words.next() {
        // What the load `process` executes.
        Some("exit") => return ExitCode::SUCCESS,
        Some("run") => run(words.next().unwrap_or_default(), &words.collect::<Vec<_>>()),
        _ => Err(usage("")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be there to read it.
            let _ = writeln!(io::stderr(), "tandem-load: {error}");
            ExitCode::from(2)
        }
    }
}

fn usage(what: &str) -> io::Error {
    let names: Vec<&str> = load::ALL.iter().map(|load| load.name()).collect();
    io::Error::other(format!(
        "{what}usage: tandem-load run MILLISECONDS LOAD...; loads: {}",
        names.join(", ")
    ))
}

fn run(milliseconds: &str, names: &[&str]) -> io::Result<()> {
    let time = match milliseconds.parse() {
        Ok(time @ 1..=60_000) => Duration::from_millis(time),
        _ => return Err(usage(&format!("'{milliseconds}' is no time from 1 to 60000; "))),
    };
    let loads: Vec<Load> = names
        .iter()
        .map(|name| Load::from_name(name).ok_or_else(|| usage(&format!("there is no load '{name}'; "))))
        .collect::<io::Result<_>>()?;
    let hash = system::own_hash()?;
    let (clock, file_system) = (system::clock_source(), system::file_system(c"/tmp"));
    say(&format!(
        r#"{{"event":"hello","program":"{hash:016x}","clock":"{clock}","tmp":"{file_system}","pause_ms":{PAUSE_MS}}}"#
    ))?;
    for load in loads {
        one(load, time)?;
    }
    say(r#"{"event":"done"}"#)
}

fn one(load: Load, time: Duration) -> io::Result<()> {
    let name = load.name();
    let measured = load.make().and_then(|mut work| {
        let count = load::calibrate(work.as_mut(), time)?;
        say(&format!(r#"{{"event":"begin","load":"{name}"}}"#))?;
        std::thread::sleep(Duration::from_millis(PAUSE_MS));
        load::measure(work.as_mut(), count)
    });
    match measured {
        Ok(Measured { operations, nanoseconds }) => say(&format!(
            r#"{{"event":"end","load":"{name}","operations":{operations},"nanoseconds":{nanoseconds}}}"#
        ))?,
        Err(error) => {
            let error: String =
                error.to_string().chars().filter(|c| !matches!(c, '"' | '\\') && !c.is_control()).collect();
            say(&format!(r#"{{"event":"unable","load":"{name}","error":"{error}"}}"#))?;
        }
    }
    std::thread::sleep(Duration::from_millis(PAUSE_MS));
    Ok(())
}

/// Writes a line at once.
fn say(line: &str) -> io::Result<()> {
    io::stdout().write_all(format!("{line}\n").as_bytes())?;
    io::stdout().flush()
}
