//! A client's bundle: what it needs to connect, in a folder of its own.

use std::path::{Path, PathBuf};

use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::environment::{Environment, path_text};
use super::site::{self, Files};
use super::{Failure, ask};
use crate::auth::Cost;
use crate::config::{ClientCerts, ListenerAddress, Settings, Transport};
use crate::pki::{Authority, CertificateInfo, Entry, Event, KeyType, Kind, Owner, ServerName, Transaction};
use crate::types::{Identity, Level};

/// What a new identity gets.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) identity: Identity,
    pub(super) certificate: bool,
    pub(super) password: Password,
}

#[derive(Clone, Debug)]
pub(super) enum Password {
    None,
    Generated,
    /// Known to a person: it is hashed, and written nowhere else.
    Given(Zeroizing<String>),
}

/// What was made of it.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// The bundle's folder, where there is one.
    pub(super) folder: Option<PathBuf>,
    pub(super) events: Vec<Event>,
    pub(super) hash: Option<crate::auth::PasswordHash>,
    pub(super) fingerprint: Option<String>,
    pub(super) expires: Option<String>,
}

/// What certificates are made with.
pub(super) struct Issuing<'a> {
    pub(super) authority: Option<&'a Authority>,
    /// What clients are to trust: goes into every bundle, also one without a certificate.
    pub(super) ca_pem: Option<String>,
    pub(super) site: &'a str,
    pub(super) key_type: KeyType,
    pub(super) days: u32,
    pub(super) now: time::OffsetDateTime,
}

/// Where a bundle says that the broker is.
pub(super) struct Reach {
    pub(super) host: String,
    pub(super) plain_port: Option<u16>,
    pub(super) tls_port: Option<u16>,
}

/// Adds a new identity's files to `change`: certificate, key, CA and `mqtt.env`.
pub(super) fn make(
    change: &mut Transaction,
    files: &Files,
    issuing: &Issuing<'_>,
    reach: &Reach,
    wanted: &Wanted,
    owner: Option<Owner>,
) -> Result<Made, Failure> {
    let mut made = Made::default();
    let folder = files.bundles.join(wanted.identity.as_str());
    let absolute = std::path::absolute(&folder).map_err(Failure::new)?;
    let in_folder = |name: &str| path_text(&absolute.join(name));
    let mut environment = Environment {
        host: reach.host.clone(),
        port: reach.tls_port.or(reach.plain_port).unwrap_or(8883),
        use_tls: reach.tls_port.is_some(),
        ..Environment::default()
    };
    let password = match &wanted.password {
        Password::None => None,
        Password::Generated => Some((site::generate_secret(), Cost::Generated)),
        Password::Given(password) => Some((password.clone(), Cost::Human)),
    };
    if let Some((password, cost)) = &password {
        made.hash = Some(site::hash(password, *cost));
        // With a certificate, a name without its password would only be refused.
        if *cost == Cost::Generated || !wanted.certificate {
            environment.user = Some(wanted.identity.as_str().to_owned());
        }
        if *cost == Cost::Generated {
            environment.password = Some(password.to_string());
        }
    }
    change.folder(&files.bundles, 0o700, owner);
    change.folder(&folder, 0o700, owner);
    if let Some(ca) = &issuing.ca_pem {
        change.write(&folder.join("ca.crt"), ca.as_str(), 0o644, owner);
        if reach.tls_port.is_some() {
            environment.ca_certs = Some(in_folder("ca.crt"));
        }
    }
    if wanted.certificate {
        let authority =
            issuing.authority.ok_or_else(|| Failure::new("a certificate needs the CA's key, which is not here"))?;
        let issued = authority
            .issue_client(issuing.site, &wanted.identity, issuing.key_type, issuing.days, issuing.now)
            .map_err(Failure::new)?;
        change.write(&folder.join("client.crt"), issued.certificate_pem.as_str(), 0o644, owner);
        change.write(&folder.join("client.key"), issued.key_pem.as_str(), 0o600, owner);
        if reach.tls_port.is_some() {
            environment.certificate = Some((in_folder("client.crt"), in_folder("client.key")));
        }
        made.fingerprint = Some(issued.info.fingerprint.clone());
        made.expires = Some(issued.info.not_after_date());
        let entry = Entry::of(&issued.info, &issued.certificate_pem, Kind::Client, Some(&wanted.identity), issuing.now);
        made.events.push(Event::Issued(entry));
    }
    let text = environment.render().map_err(|error| {
        Failure::new(format!("{error}; choose another --dir for the site, or make the bundle elsewhere with `lockgate client env --path-prefix`"))
    })?;
    change.write(&folder.join("mqtt.env"), text, 0o600, owner);
    made.folder = Some(folder);
    Ok(made)
}

/// What clients are to verify the server with: a root of elsewhere's, the CA's root, or the CA.
pub(super) fn trusted(settings: &Settings) -> PathBuf {
    if let Some(elsewhere) = settings.tls_files().next().and_then(|tls| tls.server_ca.clone()) {
        return elsewhere;
    }
    match settings.ca_root() {
        root if root.exists() => root,
        _ => settings.ca_certificate(),
    }
}

/// That, where it is there: PEM.
pub(super) fn ca_pem(settings: &Settings) -> Result<Option<String>, Failure> {
    site::read_or_empty(&trusted(settings)).map(|pem| (!pem.is_empty()).then_some(pem))
}

/// The same, where there has to be one.
pub(super) fn trusted_pem(settings: &Settings) -> Result<String, Failure> {
    ca_pem(settings)?.ok_or_else(|| Failure::new(format!("cannot read {}", trusted(settings).display())))
}

/// The first certificate of PEM text.
pub(super) fn first_certificate(pem: &str) -> Result<String, Failure> {
    let ders = crate::pki::load_certificates(pem.as_bytes()).map_err(Failure::new)?;
    Ok(crate::pki::certificate_pem(&ders[0]))
}

/// The CA, where its key is here to sign with.
pub(super) fn authority(settings: &Settings) -> Result<Authority, Failure> {
    load_authority(&settings.ca_certificate(), &settings.ca_key())
}

pub(super) fn load_authority(certificate: &Path, key: &Path) -> Result<Authority, Failure> {
    authority_of(certificate, &ca_secret(key)?)
}

pub(super) fn authority_of(certificate: &Path, secret: &CaSecret) -> Result<Authority, Failure> {
    let pem = std::fs::read_to_string(certificate)
        .map_err(|error| Failure::new(format!("cannot read the CA {}: {error}", certificate.display())))?;
    Authority::load(&pem, &secret.key_pem, time::OffsetDateTime::now_utc())
        .map_err(|error| Failure::new(format!("{}: {error}", certificate.display())))
}

/// A CA's key, opened.
pub(super) struct CaSecret {
    pub(super) key_pem: Zeroizing<String>,
    /// What it is under, if it is.
    pub(super) passphrase: Option<Zeroizing<String>>,
}

impl CaSecret {
    /// Another key as this one is kept: under the same passphrase, or under none.
    pub(super) fn keep_alike(&self, key_pem: &str) -> Result<Zeroizing<String>, Failure> {
        match &self.passphrase {
            Some(passphrase) => crate::pki::protect_key(key_pem, passphrase).map_err(Failure::new),
            None => Ok(Zeroizing::new(key_pem.to_owned())),
        }
    }
}

/// The variable that names a file with the passphrase of the CA's key, for who cannot be asked.
pub(super) const PASSPHRASE_FILE: &str = "LOCKGATE_CA_PASSPHRASE_FILE";

/// Whether a key is under a passphrase.
pub(super) fn is_protected(key: &Path) -> bool {
    std::fs::read_to_string(key).is_ok_and(|pem| crate::pki::is_protected(&pem))
}

/// Reads a CA's key, and asks for its passphrase where it is under one.
pub(super) fn ca_secret(key: &Path) -> Result<CaSecret, Failure> {
    ca_secret_with(key, std::env::var_os(PASSPHRASE_FILE).map(PathBuf::from).as_deref())
}

/// The same; the passphrase is in this file's first line.
pub(super) fn ca_secret_with(key: &Path, passphrase_file: Option<&Path>) -> Result<CaSecret, Failure> {
    let secret = crate::pki::read_secret(key)
        .map_err(|error| Failure::new(format!("{error}; the CA's key is needed to make a certificate")))?;
    let secret = str::from_utf8(&secret).map_err(|_| Failure::new(format!("{}: it is no PEM text", key.display())))?;
    open_secret(secret, key, passphrase_file)
}

/// The same of a key that was read: PEM, and the file that it is from.
pub(super) fn open_secret(secret: &str, key: &Path, passphrase_file: Option<&Path>) -> Result<CaSecret, Failure> {
    if !crate::pki::is_protected(secret) {
        return Ok(CaSecret { key_pem: Zeroizing::new(secret.to_owned()), passphrase: None });
    }
    let passphrase = match passphrase_file {
        Some(file) => {
            crate::pki::check_secret(file)?;
            ask::one_password(Some(file))?
        }
        None if ask::is_interactive() => ask::passphrase(&format!("Passphrase of {}:", key.display()), None)?,
        None => {
            return Err(Failure::new(format!(
                "{} is under a passphrase, and there is no terminal to ask for it: name a file that has it with {PASSPHRASE_FILE}",
                key.display()
            )));
        }
    };
    let key_pem = crate::pki::open_key(secret, &passphrase)
        .map_err(|error| Failure::new(format!("{}: {error}", key.display())))?;
    Ok(CaSecret { key_pem, passphrase: Some(passphrase) })
}

/// A file's name, content and mode.
type BundleFile = (&'static str, Zeroizing<Vec<u8>>, u32);

/// A bundle for another machine, at one level: copies of what there is, with its host and paths.
pub(super) struct Export<'a> {
    pub(super) identity: &'a Identity,
    pub(super) level: Level,
    pub(super) host: String,
    /// Where the files will lie on the other machine.
    pub(super) prefix: PathBuf,
}

impl Export<'_> {
    /// What will keep the bundle from working, as far as it can be told here.
    pub(super) fn warnings(&self, settings: &Settings, has_password: bool, min_level: Level) -> Vec<String> {
        let mut warnings = Vec::new();
        let tls = settings.tls_files().next();
        if self.level < min_level {
            warnings.push(format!("{} has the minimum level {min_level}: it will be refused", self.identity));
        }
        if self.level != Level::Mtls && !has_password {
            warnings.push(format!(
                "no password is in it: add MQTT_PASSWORD, or set a generated one with `lockgate client passwd {}`",
                self.identity
            ));
        }
        match (self.level, tls) {
            (Level::Plain, _) => {
                let open = settings.listeners.iter().any(|listener| {
                    listener.transport == Transport::Tcp && !matches!(listener.address, ListenerAddress::Loopback(_))
                });
                if !open {
                    warnings
                        .push("plain MQTT is for this machine alone: from another one it cannot connect so".to_owned());
                }
            }
            (_, Some(files)) => {
                if self.level == Level::Tls && files.client_certs == ClientCerts::Required {
                    warnings.push("the TLS listener requires a certificate: use --level mtls".to_owned());
                }
                let named = CertificateInfo::read(&files.certificate)
                    .is_ok_and(|info| ServerName::parse(&self.host).is_ok_and(|name| info.names.contains(&name)));
                if !named {
                    warnings.push(format!(
                        "the server certificate does not name {host}: clients will refuse it; \
                         `lockgate server renew --san {host}` makes it anew",
                        host = self.host,
                    ));
                }
            }
            _ => {}
        }
        warnings
    }

    /// The files with their contents and modes.
    pub(super) fn files(&self, settings: &Settings) -> Result<Vec<BundleFile>, Failure> {
        let files = Files::of(settings);
        let folder = files.bundles.join(self.identity.as_str());
        let (plain_port, tls_port) = site::ports(settings);
        let missing = |what: &str| {
            Failure::new(format!(
                "no listener of this site takes {what}: see `listeners` in {}",
                settings.file.display()
            ))
        };
        let use_tls = self.level != Level::Plain;
        let port = match use_tls {
            true => tls_port.ok_or_else(|| missing("TLS"))?,
            false => plain_port.ok_or_else(|| missing("plain MQTT"))?,
        };
        let here = site::read_or_empty(&folder.join("mqtt.env"))?;
        let password = Environment::value(&here, "MQTT_PASSWORD").map(str::to_owned);
        let user = Environment::value(&here, "MQTT_USER").map(str::to_owned);
        let mut made: Vec<BundleFile> = Vec::new();
        let in_prefix = |name: &str| path_text(&self.prefix.join(name));
        let mut environment =
            Environment { host: self.host.clone(), port, use_tls, user, password, ..Environment::default() };
        if use_tls {
            made.push(("ca.crt", Zeroizing::new(trusted_pem(settings)?.into_bytes()), 0o644));
            environment.ca_certs = Some(in_prefix("ca.crt"));
        }
        if self.level == Level::Mtls {
            let read = |name: &str| {
                std::fs::read(folder.join(name)).map_err(|error| {
                    Failure::new(format!(
                        "cannot read {0}: {error}; level mtls needs {1}'s certificate and key: `lockgate client sign {1} REQUEST` makes a certificate for a key of its own",
                        folder.join(name).display(),
                        self.identity
                    ))
                })
            };
            made.push(("client.crt", Zeroizing::new(read("client.crt")?), 0o644));
            made.push(("client.key", Zeroizing::new(read("client.key")?), 0o600));
            environment.certificate = Some((in_prefix("client.crt"), in_prefix("client.key")));
        }
        if self.level != Level::Mtls {
            environment.user = Some(self.identity.to_string());
        } else if environment.password.is_none() {
            environment.user = None;
        }
        let text = environment.render().map_err(Failure::new)?;
        made.push(("mqtt.env", Zeroizing::new(text.into_bytes()), 0o600));
        Ok(made)
    }
}

/// Whether a bundle's key belongs to its certificate; `None` where there is no certificate, or its key is on
/// its device alone.
pub(super) fn is_consistent(folder: &Path) -> Option<Result<(), Failure>> {
    use rustls_pki_types::pem::PemObject;
    let (certificate, key) = (folder.join("client.crt"), folder.join("client.key"));
    if !certificate.exists() || !key.exists() {
        return None;
    }
    let check = || -> Result<bool, String> {
        let der = CertificateDer::from_pem_file(&certificate)
            .map_err(|error| format!("{}: {error}", certificate.display()))?;
        let info =
            crate::pki::CertificateInfo::parse(&der).map_err(|error| format!("{}: {error}", certificate.display()))?;
        let key_der = PrivateKeyDer::from_pem_file(&key).map_err(|error| format!("{}: {error}", key.display()))?;
        crate::pki::key_matches(&key_der, &info).map_err(|error| format!("{}: {error}", key.display()))
    };
    Some(match check() {
        Ok(true) => Ok(()),
        Ok(false) => {
            Err(Failure::new(format!("{}: this key does not belong to {}", key.display(), certificate.display())))
        }
        Err(what) => Err(Failure::new(what)),
    })
}
