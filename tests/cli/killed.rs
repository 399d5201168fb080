//! Commands that change a site, killed in the middle: what was before is whole, or what was to be.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::site::{Site, lockgate, run_with};

/// A copy of a site as it stands.
fn copied(site: &Site) -> Site {
    let copy = Site::empty();
    let from = format!("{}/.", site.path("").display());
    assert_eq!(run_with(Command::new("cp").args(["-a", &from]).arg(copy.path("")), b"").0, Some(0));
    copy
}

fn command(site: &Site, arguments: &[&str]) -> Command {
    let mut command = lockgate();
    command.args(arguments).arg("--dir").arg(site.path("")).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[test]
fn whatever_command_is_killed_the_site_serves_and_the_command_can_be_given_again() {
    let site = Site::new(&["--client", "device1", "--client", "device2"]);
    let request = "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /dev/null -subj /CN=signed -out signed.csr";
    run_with(Command::new("sh").args(["-ec", request]).current_dir(site.path("")), b"");
    let rotated = copied(&site);
    rotated.ok(&["ca", "rotate"]);
    let csr = site.path("signed.csr").display().to_string();
    let commands: [(&Site, &[&str]); 11] = [
        (&site, &["client", "add", "device3"]),
        (&site, &["client", "renew", "device1", "--new-key"]),
        (&site, &["client", "revoke", "device1"]),
        (&site, &["client", "remove", "device2"]),
        (&site, &["client", "sign", "signed", &csr]),
        (&site, &["client", "passwd", "device1"]),
        (&site, &["server", "renew"]),
        (&site, &["ca", "crl"]),
        (&site, &["ca", "rotate"]),
        (&site, &["ca", "ledger", "--rebuild"]),
        (&rotated, &["ca", "retire", "--force"]),
    ];
    for (from, arguments) in commands {
        // How long it takes when nobody disturbs it.
        let whole = copied(from);
        let begun = Instant::now();
        assert!(command(&whole, arguments).status().unwrap().success(), "{arguments:?}");
        let took = begun.elapsed();
        let mut killed = 0;
        for round in 1..=8 {
            let copy = copied(from);
            let mut child = command(&copy, arguments).spawn().unwrap();
            std::thread::sleep(took * round / 9 + Duration::from_micros(200));
            drop(child.kill());
            killed += usize::from(!child.wait().unwrap().success());
            // The next command that changes the site mends it; a broker waits for that.
            copy.ok(&["client", "add", "next"]);
            let check = copy.run(&["serve", "--check"]);
            assert!(check.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&check.stderr));
            let leftovers =
                Command::new("find").arg(copy.path("")).args(["-name", "*.lockgate-staged*"]).output().unwrap();
            assert!(leftovers.stdout.is_empty(), "{arguments:?}: {}", String::from_utf8_lossy(&leftovers.stdout));
            // It may have been done, and then there is nobody left to revoke, or two CAs already; a key and its
            // certificate belong together in any case.
            let _ = command(&copy, arguments).status().unwrap();
            let check = copy.run(&["serve", "--check"]);
            assert!(check.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&check.stderr));
            copy.ok(&["client", "list"]);
        }
        assert!(killed > 0, "{arguments:?} was never killed in the middle");
    }
}
