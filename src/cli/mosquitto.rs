//! `lockgate mosquitto`, or the binary under that name: Mosquitto's command line and configuration, as they are.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use tracing::{info, warn};

use super::Failure;
use super::serve::{self, Load};
use crate::config::KeyLog;
use crate::config::mosquitto::{self, CommandLine};

const USAGE: &str = "\
lockgate mosquitto: a broker that takes Mosquitto's configuration as it is.

Usage: mosquitto [-c config_file] [-d] [-h] [-p port] [-q] [-v] [--test-config] [--tls-keylog file]

 -c : the configuration file
 -d : run in the background after starting
 -h : this help
 -p : listen on this port (may be repeated)
 -q : log nothing
 -v : log everything, whatever log_type says
 --tls-keylog : write the keys of all TLS sessions to this file, which lays their traffic open to who has it
 --test-config : read the configuration and stop

Without a listener in the configuration it serves this machine alone, on port 1883, and lets anybody in.
What became of each option: docs/mosquitto.md. `lockgate --help` has the rest.
";

/// A configuration that cannot be used: exit code 3.
fn wrong(what: impl ToString) -> Failure {
    Failure { code: 3, message: what.to_string() }
}

#[derive(Default)]
struct Wanted {
    command: CommandLine,
    daemon: bool,
    test: bool,
    help: bool,
    key_log: Option<PathBuf>,
}

fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Wanted, Failure> {
    let mut wanted = Wanted::default();
    wanted.command.location = std::env::var_os("MOSQUITTO_PERSISTENCE_LOCATION").map(PathBuf::from);
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        match argument.to_string_lossy().as_ref() {
            "-c" | "--config-file" => {
                let file =
                    arguments.next().ok_or_else(|| wrong("Error: -c argument given, but no config file specified."))?;
                wanted.command.file = Some(PathBuf::from(file));
            }
            "-p" | "--port" => {
                let text = arguments.next().ok_or_else(|| wrong("Error: -p argument given, but no port specified."))?;
                let text = text.to_string_lossy();
                let port = text.parse().ok().filter(|port| *port > 0);
                wanted
                    .command
                    .ports
                    .push(port.ok_or_else(|| wrong(format!("Error: Invalid port specified ({text}).")))?);
            }
            "-d" | "--daemon" => wanted.daemon = true,
            "-v" | "--verbose" => wanted.command.verbose = true,
            "-q" | "--quiet" => wanted.command.quiet = true,
            "--test-config" => wanted.test = true,
            "--tls-keylog" => {
                let file = arguments
                    .next()
                    .ok_or_else(|| wrong("Error: --tls-keylog argument given, but no file specified."))?;
                wanted.key_log = Some(PathBuf::from(file));
            }
            "-h" | "--help" => wanted.help = true,
            other => return Err(wrong(format!("Error: Unknown option '{other}'.\n\n{USAGE}"))),
        }
    }
    Ok(wanted)
}

pub(super) fn run(arguments: impl Iterator<Item = OsString>) -> Result<(), Failure> {
    let mut wanted = parse(arguments)?;
    if wanted.help {
        say!("{USAGE}");
        return Ok(());
    }
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(Failure::new)?;
    let name = format!("lockgate-{:016x}", u64::from_ne_bytes(random));
    wanted.command.scratch = std::env::temp_dir().join(name);
    if let Some(file) = wanted.key_log.as_ref().filter(|_| !wanted.test) {
        let opened = KeyLog::open(file);
        let opened = opened.map_err(|error| {
            Failure::new(format!("Error: Unable to open TLS key log {} for writing: {error}.", file.display()))
        })?;
        wanted.command.key_log = Some(opened);
    }
    let read = mosquitto::load(&wanted.command).map_err(wrong)?;
    if wanted.test {
        read.notices.iter().for_each(|notice| eprintln!("{notice}"));
        let material = super::running::load_material(&read.settings)
            .map_err(|failure| wrong(format!("Error: {}", failure.message)))?;
        for listener in &read.settings.listeners {
            let anybody = if listener.rules.allow_anonymous { ", anybody" } else { "" };
            say!("listener {}: {}{anybody}", listener.address, listener.transport_name());
        }
        material.findings.iter().for_each(|finding| say!("Warning: {}", finding.what));
        for weak in crate::gate::weak_passwords(&read.settings, &material.directory) {
            say!("Warning: {weak}");
        }
        say!("The configuration can be used.");
        return Ok(());
    }
    if wanted.daemon {
        // Before anything has a thread or a socket.
        nix::unistd::daemon(true, false)
            .map_err(|error| Failure::new(format!("Error: cannot run in the background: {error}.")))?;
    }
    let command = wanted.command;
    let file = command.file.clone();
    let scratch = command.scratch.clone();
    let load: Load = Arc::new(move || mosquitto::load(&command).map(|read| read.settings).map_err(wrong));
    let (notices, local_only) = (read.notices, read.local_only);
    let outcome = serve::run_on(
        read.settings,
        load,
        move |_| {
            info!("lockgate version {} starting, in Mosquitto's stead", env!("CARGO_PKG_VERSION"));
            match &file {
                Some(file) => info!("Config loaded from {}.", file.display()),
                None => info!("Using default config."),
            }
            notices.iter().for_each(|notice| info!("{notice}"));
            if let Some(file) = wanted.key_log {
                warn!(
                    "The keys of all TLS sessions are written to {}: who has it reads their traffic.",
                    file.display()
                );
            }
            if local_only {
                info!(
                    "Starting in local only mode. Connections will only be possible from clients running on this machine."
                );
                info!("Create a configuration file which defines a listener to allow remote access: `listener 1883`.");
            }
        },
        |_| {},
    );
    // Nothing in it is to be kept.
    drop(std::fs::remove_dir_all(scratch));
    outcome
}
