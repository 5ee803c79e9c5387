//! A workload of two components, a server and its client, as two containers, two virtual machines, and one of each.

use std::time::Instant;

use super::session::Session;
use super::side::{self, Given, READY, Side};
use super::stage::Stage;
use super::{Demonstration, LabError};
use crate::bench::memory;

pub(super) const DEMONSTRATION: Demonstration = Demonstration {
    name: "pair",
    title: "a server and its client as two containers, two virtual machines, and one of each",
    seconds: 30,
    run,
};

/// Answers each number by its square, and says first which kernel it runs on.
const SERVER: &str = r#"
cat /proc/sys/kernel/random/boot_id
echo ready
while read -r number; do echo $((number * number)); done
"#;

/// Asks for squares and checks the answers.
const CLIENT: &str = r#"
cat /proc/sys/kernel/random/boot_id
echo ready
i=1
while [ $i -le $count ]; do
    echo $i
    read -r answer || exit 2
    [ "$answer" = $((i * i)) ] || exit 3
    i=$((i + 1))
done
echo "checked $count"
"#;

/// Requests that a client makes.
const REQUESTS: usize = 50;

/// One pair's figures.
struct Figures {
    /// Milliseconds until both components were ready.
    ready_ms: f64,
    /// Median microseconds of a request, by way of the lab.
    request_us: f64,
    /// Processes on the host, and bytes of them.
    processes: usize,
    pss: Option<u64>,
    /// Whether both run on one kernel.
    one_kernel: bool,
}

fn run(stage: &Stage) -> Result<(), LabError> {
    stage.comment(
        "The server squares numbers, the client asks for fifty and checks the answers. Tandem's sides have no network with \
         each other yet, so the lab carries lines between the standard streams of both: what each side has, in the same \
         way. Times of requests are mostly the lab's and the streams', and only to be compared with each other.",
    )?;
    let pairs = [
        ("container + container", Side::Container, Side::Container),
        ("vm + vm", Side::Vm, Side::Vm),
        ("container + vm", Side::Container, Side::Vm),
        ("vm + container", Side::Vm, Side::Container),
    ];
    let titles = ["server + client", "ready ms", "request us", "processes", "memory MiB", "kernels"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    let mut shown = Vec::new();
    for (name, server, client) in pairs {
        let Some(figures) = stage.unless_absent(name, pair(stage, server, client))? else { continue };
        rows.push(vec![
            name.into(),
            format!("{:.0}", figures.ready_ms),
            format!("{:.0}", figures.request_us),
            figures.processes.to_string(),
            figures.pss.map_or("n/a".into(), |bytes| format!("{:.1}", bytes as f64 / f64::from(1 << 20))),
            if figures.one_kernel { "1".into() } else { "2".into() },
        ]);
        shown.push((server == Side::Container && client == Side::Container, figures));
    }
    stage.table(&rows)?;
    if !shown.is_empty() {
        stage.conclude(
            shown.iter().all(|(containers, figures)| *containers == figures.one_kernel),
            "all answers were right. Two containers share one kernel; wherever a virtual machine takes part there are two",
        )?;
    }
    Ok(())
}

fn pair(stage: &Stage, server: Side, client: Side) -> Result<Figures, LabError> {
    let given = |side| Given { memory: (side == Side::Vm).then_some(64 << 20), ..Given::default() };
    let began = Instant::now();
    let mut server = side::start(stage, server, &given(server), SERVER)?;
    let mut client = side::start(stage, client, &given(client), &format!("count={REQUESTS}\n{CLIENT}"))?;
    let kernels = [server.lines_to(READY)?.concat(), client.lines_to(READY)?.concat()];
    let ready_ms = began.elapsed().as_secs_f64() * 1e3;
    let roots = [server.pid(), client.pid()];
    let mut times = Vec::new();
    for _ in 0..REQUESTS {
        let began = Instant::now();
        let request = client.line()?;
        server.send(&request)?;
        client.send(&server.line()?)?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    let processes = memory::tree(&roots).len();
    let pss = memory::read(&roots, None, None).ok().map(|reading| reading.pss);
    finish(client, &format!("checked {REQUESTS}"))?;
    finish(server, "")?;
    times.sort_unstable_by(f64::total_cmp);
    let [first, second] = kernels;
    Ok(Figures {
        ready_ms,
        request_us: times.get(REQUESTS / 2).copied().unwrap_or_default(),
        processes,
        pss,
        one_kernel: first == second,
    })
}

/// Waits for the end of a component, which has to have been a good one.
fn finish(session: Session<'_>, last: &str) -> Result<(), LabError> {
    let ran = session.finish()?;
    if ran.code == 0 && ran.stdout.trim_end().ends_with(last) {
        return Ok(());
    }
    Err(LabError::Ended { what: "a component of the pair".into(), code: ran.code, message: ran.message() })
}
