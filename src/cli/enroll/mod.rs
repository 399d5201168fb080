//! `lockgate enroll`: tokens for devices, and the device's side of asking for a certificate.

mod desk;
mod device;
mod http;

use clap::{Args, Subcommand};
use time::OffsetDateTime;

use super::client::has_generated_key;
use super::site::{self, Editing, edit};
use super::{Failure, SiteArguments, bundle};
use crate::pki::{self, Token, Tokens, Transaction};
use crate::types::Identity;

pub(super) use desk::SiteDesk;

#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  here:      lockgate enroll token --name pump7\n  on pump7:  lockgate enroll --url https://broker.local:8443 --token TOKEN --out /etc/pump7\n  by a timer there:  lockgate enroll --url https://broker.local:8443 --renew --out /etc/pump7\n\nThe key is made on the device and never leaves it. The broker needs `enrolment: address:` for it."
)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    device: device::Device,
}

#[derive(Subcommand)]
enum Command {
    /// Make a token with which one device gets its first certificate
    #[command(after_help = "Example:\n  lockgate enroll token --name pump7 --ttl 2h")]
    Token(MakeToken),
}

#[derive(Args)]
struct MakeToken {
    /// Whose: letters, digits, '.', '_' and '-', 64 at the most
    #[arg(long, value_name = "NAME")]
    name: Identity,
    /// How long it is good: 30m, 1h, 7d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = ttl)]
    ttl: time::Duration,
    /// How often it may be used
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    uses: u32,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    site: SiteArguments,
}

/// A number of minutes, hours or days.
fn ttl(text: &str) -> Result<time::Duration, String> {
    let wrong = || "a time with its unit is expected, 1m to 30d: 30m, 1h, 7d".to_owned();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?);
    let secs = match unit {
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let secs = number.parse::<i64>().ok().and_then(|number| number.checked_mul(secs)).ok_or_else(wrong)?;
    if (60..=30 * 86_400).contains(&secs) { Ok(time::Duration::seconds(secs)) } else { Err(wrong()) }
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Some(Command::Token(arguments)) => make_token(&arguments),
        None => device::run(&arguments.device),
    }
}

/// What `token` says, for programs.
#[derive(serde::Serialize)]
#[serde(rename_all = "kebab-case")]
struct Made {
    name: String,
    token: String,
    #[serde(with = "time::serde::rfc3339")]
    expires: OffsetDateTime,
    uses: u32,
}

fn make_token(arguments: &MakeToken) -> Result<(), Failure> {
    let Editing { settings, files, owner, .. } = edit(&arguments.site)?;
    let name = &arguments.name;
    let Some(address) = settings.enrolment else {
        return Err(Failure::new(format!(
            "nobody could use a token: set `enrolment: address:` in {} (0.0.0.0:8443, say), then `lockgate serve` or restart it",
            settings.file.display()
        )));
    };
    if has_generated_key(&files, name) {
        return Err(Failure::new(format!(
            "{name} has a key that was made here: `lockgate client remove {name}` first, or choose another name"
        )));
    }
    let ca = pki::certificate_der(&bundle::trusted_pem(&settings)?).map_err(Failure::new)?;
    let token = Token::new(name, &ca);
    let now = OffsetDateTime::now_utc();
    let expires = (now + arguments.ttl).replace_nanosecond(0).unwrap_or(now);
    let mut tokens = read_tokens(&settings)?;
    tokens.add(&token, expires, arguments.uses, now);
    let mut change = Transaction::new(&files.anchor);
    change.write(&settings.tokens(), tokens.text(), 0o600, owner);
    change.commit()?;
    if arguments.json {
        let made = Made { name: name.to_string(), token: token.text().to_string(), expires, uses: arguments.uses };
        say!("{}", serde_json::to_string_pretty(&made).map_err(Failure::new)?);
        return Ok(());
    }
    let expires = expires.format(&time::format_description::well_known::Rfc3339).unwrap_or_default();
    say!("{}", token.text().as_str());
    eprintln!("for {name}, {} time(s) until {expires}; on the device:", arguments.uses);
    let host = pki::host_names().host;
    eprintln!("  lockgate enroll --url https://{host}:{} --token TOKEN --out {name}", address.port());
    Ok(())
}

fn read_tokens(settings: &crate::config::Settings) -> Result<Tokens, Failure> {
    let path = settings.tokens();
    Tokens::parse(&site::read_or_empty(&path)?).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

/// Has `change` take away the tokens of a name; whoever is revoked gets no certificate by them. How many were good.
pub(super) fn forget_tokens(
    change: &mut Transaction,
    settings: &crate::config::Settings,
    name: &Identity,
    owner: Option<pki::Owner>,
) -> Result<usize, Failure> {
    let mut tokens = read_tokens(settings)?;
    let good = tokens.forget(name, OffsetDateTime::now_utc());
    if good > 0 {
        change.write(&settings.tokens(), tokens.text(), 0o600, owner);
    }
    Ok(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_live_has_a_unit() {
        assert_eq!(ttl("30m"), Ok(time::Duration::minutes(30)));
        assert_eq!(ttl("7d"), Ok(time::Duration::days(7)));
        for bad in ["", "1", "h", "0m", "31d", "1w", "-1h", "99999999999999999999d"] {
            assert!(ttl(bad).is_err(), "{bad}");
        }
    }
}
