//! `lockgate status`, `reload` and `health`: questions to a running broker.

use clap::Args;

use super::report::new_table;
use super::{Failure, SiteArguments, client, site};
use crate::admin::api;

#[derive(Args)]
#[command(after_help = "Example:\n  lockgate status --json")]
pub(super) struct Arguments {
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    site: SiteArguments,
}

#[derive(Args)]
#[command(after_help = "Example:\n  lockgate reload")]
pub(super) struct ReloadArguments {
    #[command(flatten)]
    site: SiteArguments,
}

#[derive(Args)]
#[command(after_help = "Example:\n  lockgate health --live")]
pub(super) struct HealthArguments {
    /// Ask only whether the engine lives, not whether it takes clients
    #[arg(long)]
    live: bool,
    #[command(flatten)]
    site: SiteArguments,
}

/// What the broker says, and what its folders do.
#[derive(serde::Serialize)]
#[serde(rename_all = "kebab-case")]
struct Whole {
    #[serde(flatten)]
    status: api::Status,
    /// Of clients: with a private key or a password that is still here.
    bundles_with_secrets: usize,
    /// Who came over TLS last, and who did not.
    by_transport: client::Countdown,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let settings = site::load(&arguments.site)?;
    let status: api::Status = site::ask(&settings, "/status", None::<&()>).map_err(Failure::new)?;
    let bundles = client::bundles_with_secrets(&settings);
    let clients: api::Clients = site::ask(&settings, "/clients", None::<&()>).map_err(Failure::new)?;
    let countdown = client::Countdown::of_clients(&clients);
    if arguments.json {
        let whole = Whole { status, bundles_with_secrets: bundles, by_transport: countdown };
        say!("{}", serde_json::to_string_pretty(&whole).map_err(Failure::new)?);
        return Ok(());
    }
    say!("{} (Lockgate {}, pid {}), up {}", status.name, status.version, status.pid, duration(status.uptime_secs));
    say!("  configuration: {}", status.configuration);
    let mut table = new_table(&["Listener", "Speaks", "Addresses", "Client certificates", "Min level"]);
    for listener in &status.listeners {
        let min = if listener.anonymous {
            format!("{}, anonymous too", listener.min_level)
        } else {
            listener.min_level.clone()
        };
        table.add_row([
            &listener.name,
            &listener.transport,
            &listener.addresses.join("\n"),
            &listener.client_certs,
            &min,
        ]);
    }
    say!("{table}");
    let levels = status.connections;
    let all = levels.plain + levels.tls + levels.mtls;
    say!("  clients:       {all} connected: {} mtls, {} tls, {} plain", levels.mtls, levels.tls, levels.plain);
    for (at, line) in countdown.lines(&settings).iter().enumerate() {
        let label = if at == 0 { "migration:" } else { "" };
        say!("  {label:<14} {line}");
    }
    say!("  sessions:      {} with {} subscriptions", status.sessions, status.subscriptions);
    say!(
        "  messages:      {:.1}/s in, {:.1}/s out, {} dropped",
        status.received_per_sec,
        status.sent_per_sec,
        status.dropped
    );
    say!(
        "  queues:        {} messages waiting ({} bytes), {} in flight",
        status.queued_messages,
        status.queued_bytes,
        status.inflight_messages
    );
    say!("  retained:      {} messages ({} bytes)", status.retained_messages, status.retained_bytes);
    say!("  refused:       {} connections", status.refused);
    match &status.store {
        Some(store) => say!(
            "  kept on disk:  {} in {} commits since the start (durability: {}){}",
            super::store::bytes(store.bytes_written),
            store.commits,
            store.durability,
            if store.failing { "; IT CANNOT BE WRITTEN NOW: see the log" } else { "" }
        ),
        None => say!("  kept on disk:  nothing (durability: off)"),
    }
    for certificate in &status.certificates {
        say!(
            "  certificate:   {}: {} days left ({}), {}",
            certificate.of,
            certificate.days_left,
            certificate.expires,
            certificate.subject
        );
    }
    if bundles > 0 {
        say!(
            "  bundles:       {bundles} in {} hold a private key or a password: `lockgate client export NAME --take` hands one over",
            settings.pki.join("clients").display()
        );
    }
    for finding in &status.findings {
        say!("  note:          {finding}");
    }
    Ok(())
}

fn duration(secs: u64) -> String {
    let (days, hours, minutes) = (secs / 86_400, secs / 3_600 % 24, secs / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{secs} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

pub(super) fn reload(arguments: ReloadArguments) -> Result<(), Failure> {
    let settings = site::load(&arguments.site)?;
    let reloaded: api::Reloaded = site::ask(&settings, "/reload", Some(&())).map_err(Failure::new)?;
    say!("reloaded");
    for note in reloaded.notes {
        say!("  {note}");
    }
    Ok(())
}

pub(super) fn health(arguments: HealthArguments) -> Result<(), Failure> {
    let settings = site::load(&arguments.site)?;
    let path = if arguments.live { "/health/live" } else { "/health" };
    let health: api::Health = site::ask(&settings, path, None::<&()>).map_err(Failure::new)?;
    say!("alive: {}, ready: {}", health.alive, health.ready);
    match health.alive && (arguments.live || health.ready) {
        true => Ok(()),
        false => Err(Failure::new("the broker is not well")),
    }
}
