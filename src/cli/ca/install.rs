//! Trust in the CA for every program of this machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

use super::super::{Failure, SiteArguments, ask, bundle, site};
use crate::config::Settings;
use crate::pki::{self, CertificateInfo};

#[derive(Args)]
#[command(
    after_help = "Examples:\n  sudo lockgate ca install\n  sudo lockgate ca install --remove\n\nMQTT clients need it not: each bundle has the CA in it, and trusts nothing else. It is for programs that look at the\nsystem's store alone, browsers among them (Firefox and Java have stores of their own)."
)]
pub(super) struct Arguments {
    /// Trust a CA that may vouch for every name there is
    #[arg(long)]
    any_name: bool,
    /// Take the CA out again
    #[arg(long, conflicts_with = "any_name")]
    remove: bool,
    /// Ask nothing
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    site: SiteArguments,
}

/// Where a system keeps what its administrator trusts, and the command that takes it up.
const STORES: [(&str, &[&str]); 3] = [
    ("/usr/local/share/ca-certificates", &["update-ca-certificates"]),
    ("/etc/pki/ca-trust/source/anchors", &["update-ca-trust", "extract"]),
    ("/etc/ca-certificates/trust-source/anchors", &["update-ca-trust", "extract"]),
];

pub(super) fn install(arguments: &Arguments) -> Result<(), Failure> {
    let settings = site::load(&arguments.site)?;
    let (folder, command) = STORES.iter().find(|(folder, _)| Path::new(folder).is_dir()).ok_or_else(|| {
        Failure::new("this system keeps trusted CAs in a place that is not known here: nothing was changed")
    })?;
    let place = Path::new(folder).join(file_name(&settings));
    if arguments.remove {
        return remove(&place, command);
    }
    let path = bundle::trusted(&settings);
    let info = CertificateInfo::read(&path)?;
    match &info.permitted {
        Some(permitted) if info.is_constrained() => {
            let names: Vec<String> = permitted.iter().map(ToString::to_string).collect();
            say!("Every program of this machine will believe what {} says about", info.subject);
            say!("{}, and what is below; about nothing else.", names.join(", "));
        }
        _ if arguments.any_name => {
            say!("Every program of this machine will believe {} about every name there is:", info.subject);
            say!("whoever gets its key can pass for any bank or any update server here.");
        }
        _ => {
            return Err(Failure::new(format!(
                "{} may vouch for every name there is: trusted system-wide, whoever gets its key can pass for any bank or any \
                 update server on this machine. MQTT clients do not need it: their bundles have the CA. If you must: \
                 `lockgate init --permit NAME` makes a CA for some names alone; --any-name takes this one as it is",
                path.display()
            )));
        }
    }
    if !arguments.yes
        && ask::is_interactive()
        && !ask::confirm("Trust it?", false, "`lockgate ca install --remove` takes it back")?
    {
        return Err(Failure::new("nothing was changed"));
    }
    let pem = bundle::first_certificate(&bundle::trusted_pem(&settings)?)?;
    pki::replace(&place, pem.as_bytes(), 0o644)?;
    take_up(command)?;
    say!("{} is trusted by this machine: {}", info.subject, place.display());
    Ok(())
}

fn remove(place: &Path, command: &[&str]) -> Result<(), Failure> {
    match std::fs::remove_file(place) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Failure::new(format!("{} is not there: the CA was not installed", place.display())));
        }
        Err(error) => return Err(Failure::new(format!("cannot remove {}: {error}", place.display()))),
    }
    take_up(command)?;
    say!("{} is gone: this machine trusts the CA no more", place.display());
    Ok(())
}

/// The same for the same site, whatever its name has in it.
fn file_name(settings: &Settings) -> PathBuf {
    let plain = |character: char| if character.is_ascii_alphanumeric() { character } else { '-' };
    PathBuf::from(format!("lockgate-{}.crt", settings.name.chars().map(plain).collect::<String>()))
}

fn take_up(command: &[&str]) -> Result<(), Failure> {
    let text = command.join(" ");
    let output = Command::new(command[0])
        .args(&command[1..])
        .output()
        .map_err(|error| Failure::new(format!("the file is in place, but `{text}` does not run: {error}")))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Failure::new(format!(
            "the file is in place, but `{text}` failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))),
    }
}
