//! The same commands as a container and as a VM.

use std::time::Duration;

use crate::common::{has_kvm, run, tandem};
use crate::guest;

/// The ring3 guest takes a fraction of a second on software KVM; the standard one seconds.
const BOOT: Duration = Duration::from_secs(240);

#[test]
fn both_sides_say_the_same() {
    const TEST: &str = "both_sides_say_the_same";
    if guest(TEST).is_none() || !has_kvm(TEST) {
        return;
    }
    let sides: [(&[&str], &[u8]); 7] = [
        (&["sh", "-c", "echo out; echo err >&2; exit 7"], b""),
        (&["cat"], b"in\n\0\xfe"),
        (&["sh", "-c", "kill -15 $$"], b""),
        (&["/no/such/program"], b""),
        (&["/etc"], b""),
        (
            &["sh", "-c", "hostname; id -u; pwd; echo $PATH $HOME; env | wc -l; ls /; ls -a /root /tmp /run"],
            b"",
        ),
        (
            &["sh", "-c", "echo x >/file && cat /file; mount | grep -c ' /tmp '; cat /proc/1/comm | wc -l"],
            b"",
        ),
    ];
    for (command, input) in sides {
        let side = |side: &str| {
            let mut program = tandem();
            program.args(["run", "--as", side]);
            if side == "vm" {
                program.args(["--memory", "64M"]);
            }
            let run = run(program.arg("--").args(command), input, BOOT);
            // Each side names itself in what it says about a command that does not run.
            (run.code, run.stdout, run.stderr.replace("the guest", "the container"))
        };
        assert_eq!(side("vm"), side("container"), "{command:?}");
    }
}
