//! `lockgate passwd`: edits a bare password file, as mosquitto_passwd does.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{Failure, ask, site};
use crate::auth::{Cost, parse_passwords};
use crate::pki::Lock;
use crate::types::Identity;

#[derive(Args)]
#[command(after_help = "Example:\n  lockgate passwd --create passwd alice\n  lockgate passwd --delete passwd alice")]
pub(super) struct Arguments {
    /// Make a new file; an existing one is refused, not overwritten
    #[arg(long, short = 'c', conflicts_with = "delete")]
    create: bool,
    /// Remove the name
    #[arg(long, short = 'D')]
    delete: bool,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Read the password from a file
    #[arg(long, value_name = "FILE", conflicts_with = "password_stdin")]
    password_file: Option<PathBuf>,
    /// The password file
    file: PathBuf,
    /// Whose password
    name: Identity,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { create, delete, password_stdin, password_file, file, name } = arguments;
    match (create, file.exists()) {
        (true, true) => {
            return Err(Failure::new(format!("{} exists: leave out --create to add to it", file.display())));
        }
        (false, false) => return Err(Failure::new(format!("there is no {}: make it with --create", file.display()))),
        _ => {}
    }
    let folder = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let hash = if delete {
        None
    } else {
        let password = match (password_stdin, &password_file) {
            (false, None) if ask::is_interactive() => ask::new_password(name.as_str())?
                .ok_or_else(|| Failure::new("an empty password is none: nothing was changed"))?,
            (false, None) => {
                return Err(Failure::configuration(
                    "there is no terminal to ask for a password: use --password-stdin or --password-file",
                ));
            }
            (_, from) => ask::one_password(from.as_deref())?,
        };
        Some(site::hash(&password, Cost::Human))
    };
    let _lock = Lock::acquire(folder)?;
    let text = site::read_or_empty(&file)?;
    parse_passwords(&text).map_err(|errors| Failure::new(format!("{}: {}", file.display(), errors[0])))?;
    let edited = site::edit_passwords(&text, &name, hash.as_ref());
    if delete && edited == text {
        return Err(Failure::new(format!("there is no {name} in {}", file.display())));
    }
    crate::pki::replace(&file, edited.as_bytes(), 0o600)?;
    say!("{}: {name} {}", file.display(), if delete { "removed" } else { "set" });
    Ok(())
}
