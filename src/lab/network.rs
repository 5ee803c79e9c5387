//! The network's isolation: interfaces, and who reaches whose server.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use super::session::Session;
use super::side::{self, Given, READY, RUN_WITHIN, SIDES, Side};
use super::stage::Stage;
use super::{Demonstration, LabError};

pub(super) const DEMONSTRATION: Demonstration = Demonstration {
    name: "network",
    title: "interfaces of each side, and whether a server of one is reached from the others",
    seconds: 30,
    run,
};

/// How long a connection may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// How long a server may take to listen.
const LISTENS_WITHIN: Duration = Duration::from_secs(5);
/// What servers answer.
const GREETING: &str = "hello";

fn run(stage: &Stage) -> Result<(), LabError> {
    stage.comment(
        "Each side is asked for its interfaces, and then for a file of a web server that runs on the host, at the \
         loopback address.",
    )?;
    let files = stage.scratch().join("www");
    let make = || {
        fs::create_dir_all(&files)?;
        fs::write(files.join("greeting"), GREETING)
    };
    make().map_err(LabError::host("write a file to serve"))?;
    let port = free_port()?;
    let mut command = Command::new(stage.busybox()?);
    command.args(["httpd", "-f", "-p", &format!("127.0.0.1:{port}"), "-h"]).arg(&files);
    let server = Session::start(stage, "the server", &mut command, RUN_WITHIN)?;
    listening(stage, port)?;
    let script = format!(
        "ip -o link | while read -r index name rest; do echo \"link=$name\"; done\n\
         echo \"namespace=$(readlink /proc/self/ns/net)\"\n\
         echo \"reached=$({})\"",
        fetch(port)
    );
    let mut rows = vec![["", "interfaces", "the host's server"].map(str::to_owned).to_vec()];
    let (mut namespaces, mut reached) = (Vec::new(), Vec::new());
    for side in SIDES {
        let ran = side::run_well(stage, side, &Given::default(), &script);
        let Some(ran) = stage.unless_absent(side.phrase(), ran)? else { continue };
        let of = |key: &str| ran.stdout.lines().filter_map(|line| line.strip_prefix(key)).collect::<Vec<_>>();
        let names = of("link=").join(" ").replace(':', "");
        let answer = of("reached=").concat();
        rows.push(vec![side.name().into(), names, answer.trim_start_matches("nc: ").to_owned()]);
        namespaces.push((side, of("namespace=").concat()));
        reached.push((side, answer == GREETING));
    }
    stage.table(&rows)?;
    drop(server);
    let reaches = |of| reached.iter().find(|(side, _)| *side == of).map(|(_, reached)| *reached);
    let namespace = |of| namespaces.iter().find(|(side, _)| *side == of).map(|(_, number)| number);
    stage.conclude(
        reaches(Side::Host) == Some(true),
        "the server works: a process of the host, in the host's network namespace, reaches it",
    )?;
    if let (Some(reached), Some(host), Some(container)) =
        (reaches(Side::Container), namespace(Side::Host), namespace(Side::Container))
    {
        // Interfaces may have the same names: a host may have no other than lo.
        stage.fact("network namespaces", &format!("{host} of the host, {container} of the container"))?;
        stage.conclude(
            !reached && host != container && !container.is_empty(),
            "the container's loopback interface is another one of the same kernel: nobody listens there",
        )?;
    }
    if let Some(reached) = reaches(Side::Vm) {
        stage.conclude(
            !reached,
            "the virtual machine has a network stack of its own, and no device to leave it by",
        )?;
    }
    other_way(stage)
}

/// A server inside of the container.
fn other_way(stage: &Stage) -> Result<(), LabError> {
    stage.heading("The other way round")?;
    stage.comment("A server in the container; a client in the container and one on the host, at the same address and port.")?;
    // Free on the host, or else a server there could be taken for the container's.
    let port = free_port()?;
    let script = format!(
        "echo -n {GREETING} >/tmp/greeting; httpd -f -p 127.0.0.1:{port} -h /tmp &\n\
         said=$({fetch}); for i in 1 2 3 4 5 6 7 8 9; do\n\
         [ \"$said\" = {GREETING} ] && break; sleep 0.2; said=$({fetch}); done\n\
         echo \"said=$said\"; echo {READY}; read -r line; kill $!",
        fetch = fetch(port)
    );
    let shown = side::start(stage, Side::Container, &Given::default(), &script).and_then(|mut session| {
        let lines = session.lines_to(READY)?;
        let host = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), CONNECT_WITHIN);
        session.finish()?;
        Ok((host.map(drop), lines.concat()))
    });
    let Some((host, inside)) = stage.unless_absent("a server in the container", shown)? else {
        return Ok(());
    };
    let inside = inside.trim_start_matches("said=").to_owned();
    stage.fact("from the container", &inside)?;
    let refused = host.is_err();
    stage.fact("from the host", &host.map_or_else(|error| error.to_string(), |()| "connected".into()))?;
    stage.conclude(
        refused && inside == GREETING,
        "port numbers belong to a network namespace: the host's port of this number has no server",
    )
}

/// Words of a shell that print what the server of this port answers, or why there is no answer. By nc: a static wget of
/// busybox looks names up, which static programs of glibc may not.
fn fetch(port: u16) -> String {
    format!("printf 'GET /greeting HTTP/1.0\\r\\n\\r\\n' | nc -w 3 127.0.0.1 {port} 2>&1 | tail -n 1")
}

/// A port of the loopback interface where nobody listens.
fn free_port() -> Result<u16, LabError> {
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|server| server.local_addr());
    address.map(|address| address.port()).map_err(LabError::host("find a free port"))
}

/// Waits until somebody does.
fn listening(stage: &Stage, port: u16) -> Result<(), LabError> {
    let deadline = Instant::now() + LISTENS_WITHIN;
    loop {
        match TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), CONNECT_WITHIN) {
            Ok(_) => return Ok(()),
            Err(source) if Instant::now() >= deadline => {
                return Err(LabError::Talk { what: "the server on the host".into(), source });
            }
            Err(_) => stage.pause(Duration::from_millis(10))?,
        }
    }
}
