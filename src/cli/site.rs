//! Finding a site and its parts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::{Failure, SiteArguments};
use crate::admin::{self, CallError, api};
use crate::auth::{Cost, PasswordHash};
use crate::config::{self, Settings, Transport};
use crate::pki::{self, Event, FileError, Ledger, Lock, Owner, Transaction};
use crate::types::{Identity, Level};

/// The configuration's path, by the command line, the environment or the usual places.
pub(super) fn find_configuration(arguments: &SiteArguments) -> Result<PathBuf, Failure> {
    let from_environment = std::env::var_os("LOCKGATE_CONFIG").map(PathBuf::from);
    let given = match (&arguments.config, &arguments.dir) {
        (Some(file), _) => Some(file.clone()),
        (None, Some(folder)) => Some(folder.join("config/lockgate.yaml")),
        (None, None) => None,
    };
    let found = config::find(given.as_deref(), from_environment.as_deref()).ok_or_else(|| {
        Failure::configuration(
            "there is no configuration: neither ./config/lockgate.yaml nor /etc/lockgate/lockgate.yaml; \
             make a site here with `lockgate init`, or name one with --config FILE or --dir FOLDER",
        )
    })?;
    // A site's folder will do.
    let found = match found.is_dir() {
        true => found.join("config/lockgate.yaml"),
        false => found,
    };
    if matches!(found.try_exists(), Ok(false)) {
        let half_made = found.parent().is_some_and(pki::is_half_made);
        return Err(match half_made {
            true => {
                Failure::new(format!("{}: this site is half made; run `lockgate init` to mend it", found.display()))
            }
            false => {
                Failure::configuration(format!("there is no {}; make a site with `lockgate init`", found.display()))
            }
        });
    }
    Ok(found)
}

/// Reads the configuration with the environment laid over it.
pub(super) fn load(arguments: &SiteArguments) -> Result<Settings, Failure> {
    let path = find_configuration(arguments)?;
    let environment =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    config::load(&path, environment).map_err(Failure::configuration)
}

/// A site's own files, as commands edit them.
pub(super) struct Files {
    pub(super) passwords: PathBuf,
    pub(super) identities: PathBuf,
    pub(super) ledger: PathBuf,
    pub(super) bundles: PathBuf,
    /// Each certificate that was ever issued, in a file of its own.
    pub(super) issued: PathBuf,
    /// Folders of the listeners' certificates, keys and passwords, and of what is kept.
    others: Vec<PathBuf>,
    /// Where the journal and the lock stand.
    pub(super) anchor: PathBuf,
}

impl Files {
    pub(super) fn of(settings: &Settings) -> Files {
        let folder = settings.folder();
        Files {
            passwords: settings.passwords.clone().unwrap_or_else(|| folder.join("passwd")),
            identities: settings.identities.clone().unwrap_or_else(|| folder.join("identities.yaml")),
            ledger: settings.ledger(),
            bundles: settings.pki.join("clients"),
            issued: settings.issued(),
            others: {
                let passwords = settings.password_files().filter_map(|path| path.parent()).map(Path::to_path_buf);
                tls_folders(settings).into_iter().chain(passwords).chain([settings.data.clone()]).collect()
            },
            anchor: if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder },
        }
    }

    /// The folders in which an interrupted change may have left staged files.
    pub(super) fn recover(&self) -> Result<pki::Recovery, FileError> {
        let pki = self.ledger.parent().unwrap_or(Path::new("."));
        let parent = |path: &Path| path.parent().map(Path::to_path_buf).unwrap_or_default();
        let (passwords, identities) = (parent(&self.passwords), parent(&self.identities));
        let mut folders = vec![&*self.anchor, pki, &passwords, &identities];
        folders.extend(self.others.iter().map(PathBuf::as_path));
        pki::recover(&self.anchor, &folders)
    }

    pub(super) fn ledger_text(&self) -> Result<String, Failure> {
        // Begun anew it would know nobody, and say nothing of it.
        if !self.ledger.exists() && pki::has_kept(&self.issued) {
            return Err(Failure::new(format!(
                "{} is missing: `lockgate ca ledger --rebuild` makes it anew from the certificates",
                self.ledger.display()
            )));
        }
        read_or_empty(&self.ledger)
    }

    pub(super) fn ledger(&self) -> Result<Ledger, Failure> {
        Ledger::parse(&self.ledger_text()?).map_err(|error| {
            Failure::new(format!("{}: {error}; `lockgate ca ledger --rebuild` makes it anew", self.ledger.display()))
        })
    }

    /// Has `change` write into the ledger, and to the certificates that are kept beside it, what happens; the
    /// ledger as it will be.
    pub(super) fn record(
        &self,
        change: &mut Transaction,
        events: &[Event],
        owner: Option<Owner>,
    ) -> Result<String, Failure> {
        change.folder(&self.issued, 0o700, owner);
        for event in events {
            let (serial, text) = match event {
                Event::Issued(entry) => (&entry.serial, entry.certificate.clone()),
                Event::Revoked { serial, .. } => {
                    let file = self.issued_file(serial);
                    (serial, change.content(&file).map_or_else(|| read_or_empty(&file), Ok)?)
                }
            };
            // One from before they were kept is not.
            if !text.is_empty() {
                change.write(&self.issued_file(serial), pki::kept(event, &text), 0o644, owner);
            }
        }
        let text = self.ledger_text()? + &Ledger::lines(events);
        change.write(&self.ledger, text.as_str(), 0o600, owner);
        Ok(text)
    }

    fn issued_file(&self, serial: &str) -> PathBuf {
        let hexadecimal: String = serial.chars().filter(char::is_ascii_hexdigit).collect();
        self.issued.join(format!("{hexadecimal}.crt"))
    }

    /// The owner that files of this site have, for new ones.
    pub(super) fn owner(&self) -> Option<Owner> {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(&self.anchor).ok()?;
        // Only root can give files away; others make them as their own.
        rustix::process::geteuid().is_root().then(|| Owner { uid: metadata.uid(), gid: metadata.gid() })
    }
}

/// The folders that hold the listeners' certificates and keys.
pub(super) fn tls_folders(settings: &Settings) -> Vec<PathBuf> {
    let files = settings.tls_files().flat_map(|tls| [&tls.certificate, &tls.key]);
    files.filter_map(|path| path.parent()).map(Path::to_path_buf).collect()
}

/// Whose a CA's key is: root's, unless the broker is to use it; whoever else owns the site.
pub(super) fn ca_key_owner(settings: &Settings, owner: Option<Owner>) -> Option<Owner> {
    match owner {
        Some(_) if !settings.self_renew && settings.enrolment.is_none() => Some(Owner { uid: 0, gid: 0 }),
        owner => owner,
    }
}

/// A site under the lock of its files, with what was interrupted mended.
pub(super) struct Editing {
    pub(super) settings: Settings,
    pub(super) files: Files,
    pub(super) owner: Option<Owner>,
    /// Given back before a running broker is told.
    pub(super) lock: Lock,
}

pub(super) fn edit(arguments: &SiteArguments) -> Result<Editing, Failure> {
    let path = find_configuration(arguments)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let lock = Lock::acquire(folder)?;
    // The configuration says where the rest of the site is; it may itself be among what was
    // interrupted, and then only `init` can tell.
    let settings = load(arguments)?;
    let files = Files::of(&settings);
    files.recover()?;
    let owner = files.owner();
    Ok(Editing { settings, files, owner, lock })
}

pub(super) fn read_or_empty(path: &Path) -> Result<String, Failure> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Failure::new(format!("cannot read {}: {error}", path.display()))),
    }
}

/// A password file's text with `identity`'s line set, or removed (`None`). Other lines stay as they
/// are, comments too.
pub(super) fn edit_passwords(text: &str, identity: &Identity, hash: Option<&PasswordHash>) -> String {
    let prefix = format!("{identity}:");
    let mut lines: Vec<String> = Vec::new();
    let mut done = false;
    for line in text.lines() {
        if line.trim_start().starts_with(&prefix) {
            if let (Some(hash), false) = (hash, done) {
                lines.push(format!("{prefix}{hash}"));
            }
            done = true;
        } else {
            lines.push(line.to_owned());
        }
    }
    if let (Some(hash), false) = (hash, done) {
        lines.push(format!("{prefix}{hash}"));
    }
    lines.into_iter().map(|line| line + "\n").collect()
}

/// `identities.yaml` with one minimum level set or removed; the file is ours, and written whole.
pub(super) fn edit_identities(path: &Path, identity: &Identity, min_level: Option<Level>) -> Result<String, Failure> {
    let mut levels = crate::gate::read_identities(path).map_err(Failure::configuration)?;
    match min_level {
        Some(level) => levels.insert(identity.clone(), level),
        None => levels.remove(identity),
    };
    let entries: BTreeMap<&str, BTreeMap<&str, &str>> =
        levels.iter().map(|(name, level)| (name.as_str(), BTreeMap::from([("min-level", level.as_str())]))).collect();
    let mut text = IDENTITIES_HEADER.to_owned();
    if !entries.is_empty() {
        text.push_str(&serde_saphyr::to_string(&entries).map_err(Failure::new)?);
    }
    Ok(text)
}

pub(super) const IDENTITIES_HEADER: &str = "# What belongs to an identity beside its password and certificate. Written by `lockgate client`.\n# NAME:\n#   min-level: tls     # plain | tls | mtls: refuse the identity where it is less protected\n";

/// 192 random bits, in characters that every file format takes as they are.
pub(super) fn generate_secret() -> Zeroizing<String> {
    use base64::Engine;
    let mut random = Zeroizing::new([0; 24]);
    getrandom::fill(&mut *random).expect("the kernel's random generator");
    Zeroizing::new(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(*random))
}

pub(super) fn hash(password: &str, cost: Cost) -> PasswordHash {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).expect("the kernel's random generator");
    PasswordHash::new(password.as_bytes(), cost, salt)
}

/// Ports that a client of this machine can use: plain and TLS.
pub(super) fn ports(settings: &Settings) -> (Option<u16>, Option<u16>) {
    let port = |wanted: fn(&Transport) -> bool| {
        settings
            .listeners
            .iter()
            .find(|listener| listener.websocket.is_none() && wanted(&listener.transport))
            .and_then(|listener| listener.address.port())
    };
    (port(|transport| *transport == Transport::Tcp), port(|transport| matches!(transport, Transport::Tls(_))))
}

/// Asks a running broker, from a command that has no runtime of its own.
pub(super) fn ask<A: serde::de::DeserializeOwned>(
    settings: &Settings,
    path: &str,
    body: Option<&impl serde::Serialize>,
) -> Result<A, CallError> {
    runtime().block_on(admin::call(&settings.data, path, body))
}

/// This program, to be started for a site of its own: what the environment says of another one is not meant for it, nor
/// what a service manager told this process.
pub(super) fn this_program() -> Result<std::process::Command, Failure> {
    let mut command = std::process::Command::new(std::env::current_exe().map_err(Failure::new)?);
    for (name, _) in std::env::vars_os() {
        if ["LOCKGATE_", "NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_"]
            .iter()
            .any(|of| name.to_string_lossy().starts_with(of))
        {
            command.env_remove(name);
        }
    }
    Ok(command)
}

pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the kernel gives a runtime its event queue")
}

/// After a change of clients: a running broker learns of it at once.
pub(super) fn tell_broker(settings: &Settings) -> Result<String, Failure> {
    tell(settings, "/reload/clients")
}

/// After a change of certificates.
pub(super) fn tell_broker_all(settings: &Settings) -> Result<String, Failure> {
    tell(settings, "/reload")
}

fn tell(settings: &Settings, path: &str) -> Result<String, Failure> {
    match ask::<api::Reloaded>(settings, path, Some(&())) {
        Ok(_) => Ok("the running broker has taken it up".to_owned()),
        Err(CallError::NotRunning(_)) => Ok("no broker is running; it will hold from the next start on".to_owned()),
        Err(error) => Err(Failure::new(format!("it is written, but the running broker has not taken it up: {error}"))),
    }
}
