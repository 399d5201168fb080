//! `lockgate run`: a broker for the life of one command.

mod breaks;
mod child;
mod command;
mod workshop;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use clap::builder::PossibleValuesParser;
use serde_json::json;
use tempfile::TempDir;

use super::environment::Environment;
use super::report::new_table;
use super::{Failure, finish};
use crate::types::Level;
use breaks::{BREAKS, Does, Wanted};
use child::Child;

#[derive(Args)]
#[command(
    after_help = "Examples:\n  lockgate run -- pytest\n  lockgate run --level mtls -- node publish.js\n  lockgate run --break expired-server -- ./my-client\n  lockgate run --json            # prints one line, and lives until its standard input closes\n\nThe command finds the broker by MQTT_HOST, MQTT_PORT, MQTT_USE_TLS, MQTT_USER, MQTT_PASSWORD, MQTT_CA_CERTS,\nMQTT_CERTFILE and MQTT_KEYFILE. Its exit code is this program's, signals are passed on to it, and nothing is left\nbehind. Any number run side by side, each on a port of its own."
)]
pub(super) struct Arguments {
    /// What clients connect with: nothing but a password, TLS and a password, TLS and a certificate
    #[arg(long, value_name = "LEVEL", default_value = "tls", value_parser = PossibleValuesParser::new(["plain", "tls", "mtls"]))]
    level: String,
    /// Make a trouble that a client has to cope with (repeatable; --list shows all)
    #[arg(long = "break", value_name = "FAULT", value_parser = Wanted::parse)]
    breaks: Vec<Wanted>,
    /// List the troubles, and what a good client does about each
    #[arg(long)]
    list: bool,
    /// Print the connection as one line of JSON; without a command, live until standard input closes
    #[arg(long)]
    json: bool,
    /// Keep the broker's log in this file
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// The command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<std::ffi::OsString>,
    /// Be the broker of this folder
    #[arg(long, hide = true, value_name = "FOLDER")]
    serve: Option<PathBuf>,
    /// And end with this process
    #[arg(long, hide = true, value_name = "PID", default_value_t = 0)]
    parent: i32,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    if let Some(folder) = &arguments.serve {
        return finish(child::serve(folder, arguments.parent));
    }
    match go(arguments) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => finish(Err(failure)),
    }
}

fn go(arguments: &Arguments) -> Result<u8, Failure> {
    if arguments.list {
        list(arguments.json)?;
        return Ok(0);
    }
    if arguments.command.is_empty() && !arguments.json {
        return Err(Failure::configuration(
            "there is no command: `lockgate run -- COMMAND`, or `lockgate run --json` for a program that talks to it",
        ));
    }
    let level = level(arguments)?;
    let place = std::env::temp_dir();
    if place.to_str().is_none_or(|place| !place.chars().all(Environment::takes)) {
        return Err(Failure::configuration(format!(
            "TMPDIR is {}: paths in mqtt.env have letters, digits and _ . / : @ + = - alone; name another place by TMPDIR",
            place.display()
        )));
    }
    if let Some(log) = &arguments.log {
        std::fs::write(log, "").map_err(|error| Failure::configuration(format!("--log {}: {error}", log.display())))?;
    }
    let home = TempDir::with_prefix("lockgate-run-").map_err(|error| {
        Failure::new(format!("cannot make a temporary folder: {error}; TMPDIR names another place"))
    })?;
    // Signals are taken from here on: nothing is left behind by one that comes early.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::new)?;
    let code = runtime.block_on(live(arguments, level, home.path()));
    if let Some(log) = &arguments.log
        && let Err(error) = std::fs::copy(home.path().join(child::LOG), log)
    {
        eprintln!("lockgate: the broker's log cannot be copied to {}: {error}", log.display());
    }
    home.close().map_err(|error| Failure::new(format!("the temporary folder could not be removed: {error}")))?;
    code
}

/// The level at which the troubles can happen, where only one will do.
fn level(arguments: &Arguments) -> Result<Level, Failure> {
    let level = Level::parse(&arguments.level).expect("clap takes no other");
    let can = |level: Level| arguments.breaks.iter().all(|wanted| wanted.of.levels.contains(&level));
    if can(level) {
        return Ok(level);
    }
    let fits: Vec<&str> = Level::ALL.into_iter().filter(|level| can(*level)).map(Level::as_str).collect();
    match fits[..] {
        [] => Err(Failure::configuration("these troubles cannot happen together: one needs what another excludes")),
        _ => {
            let name = arguments.breaks.iter().find(|wanted| !wanted.of.levels.contains(&level));
            let name = name.map_or("", |wanted| wanted.of.name);
            Err(Failure::configuration(format!(
                "{name} does not happen at level {level}: add --level {}",
                fits.join(" or ")
            )))
        }
    }
}

async fn live(arguments: &Arguments, level: Level, folder: &Path) -> Result<u8, Failure> {
    let mut signals = command::Signals::take()?;
    workshop::make(folder, level, &arguments.breaks)?;
    let mut broker = Child::start(folder).await?;
    let port = broker.port;
    workshop::settle(folder, level, port)?;
    let variables = workshop::variables(folder, level, port, &arguments.breaks)?;
    let restarts = arguments.breaks.iter().any(|wanted| matches!(wanted.of.does, Does::Restart));
    if arguments.json {
        let all: serde_json::Map<String, serde_json::Value> =
            variables.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
        let value = |name: &str| all.get(name).cloned();
        say!(
            "{}",
            json!({
                "host": value("MQTT_HOST"),
                "port": port,
                "level": level.as_str(),
                "user": value("MQTT_USER"),
                "password": value("MQTT_PASSWORD"),
                "ca-certs": value("MQTT_CA_CERTS"),
                "certfile": value("MQTT_CERTFILE"),
                "keyfile": value("MQTT_KEYFILE"),
                "env": all,
            })
        );
    }
    let gone = broker.watch(folder, restarts);
    let code = match arguments.command.is_empty() {
        true => until_input_closes(&mut signals, gone).await,
        false => command::run(&arguments.command, &variables, &mut signals, gone).await,
    };
    broker.stop().await;
    code
}

async fn until_input_closes(
    signals: &mut command::Signals,
    gone: impl Future<Output = Failure>,
) -> Result<u8, Failure> {
    // A thread of its own: one of the runtime's would keep it from ending where a signal comes first.
    let (closed, closes) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut sink = [0; 1024];
        while matches!(std::io::stdin().lock().read(&mut sink), Ok(1..)) {}
        let _ = closed.send(());
    });
    tokio::select! {
        _ = closes => Ok(0),
        _ = signals.next() => Ok(0),
        failure = gone => Err(failure),
    }
}

fn list(as_json: bool) -> Result<(), Failure> {
    if as_json {
        let all: Vec<_> = BREAKS
            .iter()
            .map(|one| {
                let levels: Vec<&str> = one.levels.iter().map(|level| level.as_str()).collect();
                json!({ "name": one.name, "counts": one.counts.map(|(what, _)| what), "what": one.what, "a-good-client": one.good, "levels": levels })
            })
            .collect();
        say!("{}", serde_json::to_string_pretty(&all).map_err(Failure::new)?);
        return Ok(());
    }
    let mut table = new_table(&["--break", "What happens", "A good client"]);
    for one in BREAKS {
        let name = match one.counts {
            Some((what, u32::MAX)) => format!("{}[=N], N {what} [all]", one.name),
            Some((what, usual)) => format!("{}[=N], N {what} [{usual}]", one.name),
            None => one.name.to_owned(),
        };
        let levels: Vec<&str> = one.levels.iter().map(|level| level.as_str()).collect();
        let what = match levels.len() {
            3 => one.what.to_owned(),
            _ => format!("{} (--level {})", one.what, levels.join(", ")),
        };
        table.add_row([&name, &what, &one.good.to_owned()]);
    }
    say!("{table}");
    Ok(())
}
