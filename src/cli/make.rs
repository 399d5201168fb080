//! Makes what is missing of a site.

use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::Failure;
use super::bundle::{self, CaSecret, Issuing, Reach, Wanted};
use super::init::{Arguments, CaSecrets, Layout};
use super::report::{ClientReport, MadeFile, Report, TryIt, listener_report};
use super::server;
use super::site::{self, Files};
use crate::config::{self, ClientCerts, Settings, Template, Transport};
use crate::pki::{
    self, Authority, CertificateInfo, Entry, Event, ISSUING_CA_DAYS, Issued, KeyType, Kind, Owner, Permitted,
    ServerName, Transaction,
};
use crate::types::Identity;

pub(super) struct Maker<'a> {
    pub(super) arguments: &'a Arguments,
    pub(super) layout: &'a Layout,
    pub(super) owner: Option<Owner>,
    /// Names that a new CA may issue for, where it is not to issue for all.
    pub(super) permitted: Vec<Permitted>,
    pub(super) secrets: CaSecrets,
    pub(super) now: OffsetDateTime,
    pub(super) change: Transaction,
    pub(super) events: Vec<Event>,
    /// A new root's key and where it is to go.
    pub(super) root_key: Option<(PathBuf, Zeroizing<String>)>,
    /// What stands behind the server's certificate.
    pub(super) link: String,
    pub(super) report: Report,
}

impl Maker<'_> {
    pub(super) fn make(&mut self, sans: &[ServerName], wanted: &[Wanted]) -> Result<(), Failure> {
        let host = pki::host_names();
        let site = self.arguments.name.clone().unwrap_or_else(|| match host.host.is_empty() {
            true => "lockgate".to_owned(),
            false => host.host.clone(),
        });
        self.folders()?;
        let settings = self.configuration(&site)?;
        let signs = settings.tls_files().next().is_some_and(|tls| !tls.certificate.exists())
            || wanted.iter().any(|wanted| wanted.certificate);
        let own = host.names.iter().chain(sans).map(Permitted::from);
        let permitted: Vec<Permitted> = self.permitted.iter().cloned().chain(own).collect();
        let permitted = (!self.permitted.is_empty()).then_some(permitted);
        let authority = self.authority(&settings, &site, permitted.as_deref(), signs)?;
        self.server(&settings, &authority, &host, sans, &site)?;
        self.clients(&settings, &authority, &site, wanted)?;
        self.ledger(&settings)?;
        self.report.listeners = settings.listeners.iter().map(listener_report).collect();
        if self.arguments.key_type() == KeyType::Ed25519 {
            self.note("Ed25519 keys: clients with mbedTLS (many microcontrollers) cannot use them");
        }
        Ok(())
    }

    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.report.notes.push(note.into());
    }

    fn existed(&mut self, path: &Path) {
        self.report.existed.push(path.to_owned());
    }

    fn made(&mut self, what: &str, path: &Path, info: Option<&CertificateInfo>) {
        self.report.made.push(MadeFile {
            what: what.to_owned(),
            path: path.to_owned(),
            fingerprint: info.map(|info| info.fingerprint.clone()),
            days_left: info.map(|info| info.days_left(self.now)),
        });
    }

    fn folders(&mut self) -> Result<(), Failure> {
        for folder in [&self.layout.config, &self.layout.pki, &self.layout.data] {
            self.change.folder(folder, 0o700, self.owner);
        }
        keep_out_of_git(&mut self.change, &self.layout.config, [&self.layout.pki, &self.layout.data], self.owner);
        Ok(())
    }

    /// Writes the configuration and what it names, or reads the one that exists.
    fn configuration(&mut self, site: &str) -> Result<Settings, Failure> {
        let file = self.layout.file();
        let arguments = self.arguments;
        let settings = if file.exists() {
            self.existed(&file);
            let settings = config::load(&file, []).map_err(Failure::configuration)?;
            self.note_differences(&settings);
            settings
        } else {
            let template = Template {
                name: site.to_owned(),
                data: self.layout.data_text.to_owned(),
                pki: self.layout.pki_text.to_owned(),
                plain: match arguments.plain.as_str() {
                    "off" => None,
                    "all" => Some(("all", arguments.plain_port)),
                    _ => Some(("loopback", arguments.plain_port)),
                },
                tls_port: arguments.tls_port,
                client_certs: match arguments.client_certs.as_str() {
                    "off" => ClientCerts::Off,
                    "required" => ClientCerts::Required,
                    _ => ClientCerts::Optional,
                },
                self_renew: arguments.self_renew,
            };
            let text = config::render(&template);
            let settings = config::parse(&file, &text, []).map_err(Failure::configuration)?;
            self.change.write(&file, text, 0o600, self.owner);
            self.made("configuration", &file, None);
            settings
        };
        self.text_file(settings.acl.clone(), "access control list", acl_text(arguments.acl == "own"))?;
        self.text_file(settings.identities.clone(), "minimum levels", site::IDENTITIES_HEADER.to_owned())?;
        Ok(settings)
    }

    fn text_file(&mut self, path: Option<PathBuf>, what: &str, text: String) -> Result<(), Failure> {
        let Some(path) = path else { return Ok(()) };
        if path.exists() {
            self.existed(&path);
        } else {
            self.change.write(&path, text, 0o600, self.owner);
            self.made(what, &path, None);
        }
        Ok(())
    }

    /// What was asked for and is not applied, since the configuration exists.
    fn note_differences(&mut self, settings: &Settings) {
        let arguments = self.arguments;
        let (plain, tls) = site::ports(settings);
        let file = self.layout.file();
        let mut not_applied = Vec::new();
        if arguments.plain_port != 1883 && plain != Some(arguments.plain_port) {
            not_applied.push("--plain-port");
        }
        if arguments.tls_port != 8883 && tls != Some(arguments.tls_port) {
            not_applied.push("--tls-port");
        }
        if (arguments.plain == "off") == plain.is_some() && arguments.plain != "loopback" {
            not_applied.push("--plain");
            if arguments.plain == "off" {
                self.note(format!(
                    "to close plain MQTT take its listener out of {} (the block from `- address:` on that says `transport: tcp`), then `lockgate reload`",
                    file.display()
                ));
            }
        }
        if arguments.self_renew && !settings.self_renew {
            not_applied.push("--self-renew");
        }
        if arguments.client_certs != "optional" {
            not_applied.push("--client-certs");
        }
        if arguments.acl != "shared" {
            not_applied.push("--acl");
        }
        if !not_applied.is_empty() {
            self.note(format!(
                "{} exists and is not changed: {} had no effect; edit the file",
                file.display(),
                not_applied.join(", ")
            ));
        }
    }

    /// `signs`: whether its key is needed though it is under a passphrase.
    fn authority(
        &mut self,
        settings: &Settings,
        site: &str,
        permitted: Option<&[Permitted]>,
        signs: bool,
    ) -> Result<Option<Authority>, Failure> {
        let (certificate, key) = (settings.ca_certificate(), settings.ca_key());
        let arguments = self.arguments;
        let asked = [
            (arguments.intermediate, "--intermediate"),
            (self.secrets.ca.is_some(), "--ca-passphrase"),
            (!arguments.permit.is_empty(), "--permit"),
        ];
        let asked: Vec<&str> = asked.into_iter().filter_map(|(is, option)| is.then_some(option)).collect();
        if certificate.exists() && !asked.is_empty() {
            return Err(Failure::new(format!(
                "{} exists, and {} is for a new CA: `lockgate ca passphrase` seals the key of this one; for the rest begin in another --dir",
                certificate.display(),
                asked.join(", ")
            )));
        }
        match (certificate.exists(), key.exists()) {
            (true, true) if signs || !bundle::is_protected(&key) => {
                self.existed(&certificate);
                self.existed(&key);
                self.link = server::link(settings)?;
                bundle::load_authority(&certificate, &key).map(Some)
            }
            (true, has_key) => {
                self.existed(&certificate);
                if has_key {
                    self.existed(&key);
                }
                let info = CertificateInfo::read(&certificate)?;
                if !info.is_ca {
                    return Err(Failure::new(format!(
                        "{}: it is no CA: its basic constraints lack CA:TRUE",
                        certificate.display()
                    )));
                }
                if info.not_after <= self.now {
                    let (path, date) = (certificate.display(), info.not_after_date());
                    return Err(Failure::new(format!("{path}: the CA certificate expired on {date}")));
                }
                Ok(None)
            }
            (false, true) => Err(Failure::new(format!(
                "{} exists and {} does not: put the certificate back, or move the key away to make a new CA",
                key.display(),
                certificate.display()
            ))),
            (false, false) => {
                let key_type = self.arguments.key_type();
                let days = self.arguments.ca_days;
                let (authority, issued) =
                    Authority::create_for(site, key_type, days, permitted, self.now).map_err(Failure::new)?;
                let (authority, issued) = match self.arguments.intermediate {
                    true => self.below_root(settings, site, &authority, &issued)?,
                    false => (authority, issued),
                };
                let key_owner = site::ca_key_owner(settings, self.owner);
                self.change.write(&certificate, issued.certificate_pem.as_str(), 0o644, self.owner);
                let secret = CaSecret { key_pem: issued.key_pem.clone(), passphrase: self.secrets.ca.clone() };
                self.change.write(&key, secret.keep_alike(&issued.key_pem)?.as_str(), 0o600, key_owner);
                self.events.push(Event::Issued(Entry::of(
                    &issued.info,
                    &issued.certificate_pem,
                    Kind::Ca,
                    None,
                    self.now,
                )));
                self.made("CA certificate", &certificate, Some(&issued.info));
                self.made("CA key", &key, None);
                Ok(Some(authority))
            }
        }
    }

    /// A CA below a root that was just made: the root's certificate is what clients trust, its key goes away.
    fn below_root(
        &mut self,
        settings: &Settings,
        site: &str,
        root: &Authority,
        made: &Issued,
    ) -> Result<(Authority, Issued), Failure> {
        let out = self.arguments.root_key_out.clone().expect("clap demands it");
        if out.exists() {
            return Err(Failure::new(format!("{} exists: name another file for the root's key", out.display())));
        }
        let place = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let place = std::fs::canonicalize(place).or_else(|_| std::path::absolute(place)).map_err(Failure::new)?;
        for own in [&settings.pki, &settings.data, &settings.folder()] {
            if std::fs::canonicalize(own).is_ok_and(|own| place.starts_with(own))
                || std::path::absolute(own).is_ok_and(|own| place.starts_with(own))
            {
                return Err(Failure::new(format!(
                    "{} is this site's own folder: the root's key is to be kept elsewhere, on a medium of its own",
                    own.display()
                )));
            }
        }
        let passphrase = self.secrets.root.take().expect("asked for with --intermediate");
        let sealed = pki::protect_key(&made.key_pem, &passphrase).map_err(Failure::new)?;
        let days = ISSUING_CA_DAYS.min(self.arguments.ca_days);
        let (authority, issued) =
            root.issue_ca(site, self.arguments.key_type(), days, self.now).map_err(Failure::new)?;
        self.change.write(&settings.ca_root(), made.certificate_pem.as_str(), 0o644, self.owner);
        self.events.push(Event::Issued(Entry::of(&made.info, &made.certificate_pem, Kind::Ca, None, self.now)));
        self.made("root certificate", &settings.ca_root(), Some(&made.info));
        self.made("root key, sealed", &out, None);
        self.note(format!(
            "take {} to where it is safe, and off this machine: it is needed to make the next issuing CA (`lockgate ca rotate --root-key FILE`), and for nothing else",
            out.display()
        ));
        self.root_key = Some((out, sealed));
        self.link = issued.certificate_pem.clone();
        Ok((authority, issued))
    }

    fn server(
        &mut self,
        settings: &Settings,
        authority: &Option<Authority>,
        host: &pki::HostNames,
        sans: &[ServerName],
        site: &str,
    ) -> Result<(), Failure> {
        let tls = settings.tls_files().next();
        let Some(tls) = tls else { return Ok(()) };
        let (certificate, key) = (&tls.certificate, &tls.key);
        match (certificate.exists(), key.exists()) {
            (true, true) => {
                self.existed(certificate);
                self.existed(key);
                self.check_server(certificate, key, authority, sans)
            }
            (true, false) | (false, true) => {
                let (there, gone) = if certificate.exists() { (certificate, key) } else { (key, certificate) };
                Err(Failure::new(format!(
                    "{} exists and {} does not: put it back, or move the other away to make both anew",
                    there.display(),
                    gone.display()
                )))
            }
            (false, false) => {
                let authority = authority.as_ref().ok_or_else(|| {
                    Failure::new(format!(
                        "a server certificate needs the CA's key {}, which is not here",
                        settings.ca_key().display()
                    ))
                })?;
                let mut names = host.names.clone();
                names.extend(sans.iter().filter(|name| !host.names.contains(name)).cloned());
                let foreign = authority.info.not_permitted(&names);
                names.retain(|name| !foreign.contains(name));
                if !foreign.is_empty() {
                    let list: Vec<String> = foreign.iter().map(ToString::to_string).collect();
                    self.note(format!(
                        "this CA may not issue for {}: the server certificate is without",
                        list.join(", ")
                    ));
                }
                let key_type = self.arguments.key_type();
                let issued = authority
                    .issue_server(site, &names, key_type, self.arguments.days, self.now)
                    .map_err(Failure::new)?;
                self.change.write(certificate, issued.certificate_pem.clone() + &self.link, 0o644, self.owner);
                self.change.write(key, issued.key_pem.as_str(), 0o600, self.owner);
                self.events.push(Event::Issued(Entry::of(
                    &issued.info,
                    &issued.certificate_pem,
                    Kind::Server,
                    None,
                    self.now,
                )));
                self.made("server certificate", certificate, Some(&issued.info));
                self.made("server key", key, None);
                let list: Vec<String> = names.iter().map(ToString::to_string).collect();
                self.note(format!(
                    "the server certificate is for {}; more names: `lockgate server renew --san NAME`",
                    list.join(", ")
                ));
                Ok(())
            }
        }
    }

    fn check_server(
        &mut self,
        certificate: &Path,
        key: &Path,
        authority: &Option<Authority>,
        sans: &[ServerName],
    ) -> Result<(), Failure> {
        let info = CertificateInfo::read(certificate)?;
        let secret = pki::read_secret(key)?;
        let loaded = pki::load_key(&secret).map_err(|error| Failure::new(format!("{}: {error}", key.display())))?;
        match pki::key_matches(&loaded, &info) {
            Ok(true) => {}
            Ok(false) => {
                return Err(Failure::new(format!(
                    "{}: this key does not belong to {}",
                    key.display(),
                    certificate.display()
                )));
            }
            Err(error) => return Err(Failure::new(format!("{}: {error}", key.display()))),
        }
        if info.not_after <= self.now {
            return Err(Failure::new(format!(
                "{}: the server certificate expired on {}: `lockgate server renew` makes a new one",
                certificate.display(),
                info.not_after_date()
            )));
        }
        if let Some(authority) = authority
            && !info.is_issued_by(&authority.info)
        {
            self.note(format!("{} was not signed by this site's CA: clients need its own CA", certificate.display()));
        }
        let missing: Vec<String> =
            sans.iter().filter(|name| !info.names.contains(name)).map(ToString::to_string).collect();
        if !missing.is_empty() {
            let sans: Vec<String> = missing.iter().map(|name| format!("--san {name}")).collect();
            self.note(format!(
                "{} exists and does not name {}: `lockgate server renew {}` makes it anew",
                certificate.display(),
                missing.join(", "),
                sans.join(" ")
            ));
        }
        Ok(())
    }

    fn clients(
        &mut self,
        settings: &Settings,
        authority: &Option<Authority>,
        site: &str,
        wanted: &[Wanted],
    ) -> Result<(), Failure> {
        let files = Files::of(settings);
        let mut passwords = site::read_or_empty(&files.passwords)?;
        let known = crate::auth::parse_passwords(&passwords)
            .map_err(|errors| Failure::new(format!("{}: {}", files.passwords.display(), errors[0])))?;
        let ledger = files.ledger()?;
        let existed = files.passwords.exists();
        let (plain_port, tls_port) = site::ports(settings);
        let reach = Reach { host: "localhost".to_owned(), plain_port, tls_port };
        let issuing = Issuing {
            authority: authority.as_ref(),
            ca_pem: match authority {
                Some(authority) => Some(self.trusted(settings, authority)?),
                None => bundle::ca_pem(settings)?,
            },
            site,
            key_type: self.arguments.key_type(),
            days: self.arguments.days,
            now: self.now,
        };
        let mut changed = !existed;
        for wanted in wanted {
            let folder = files.bundles.join(wanted.identity.as_str());
            let has_password = known.iter().any(|line| line.identity == wanted.identity);
            let has_certificate = !ledger.current_of(&wanted.identity).is_empty();
            if has_password || has_certificate || folder.exists() {
                if let Some(consistent) = bundle::is_consistent(&folder) {
                    consistent?;
                }
                if wanted.certificate && !has_certificate {
                    self.note(format!(
                        "{0} has no certificate and got none: `lockgate client remove {0}` and `lockgate client add {0}` make both",
                        wanted.identity
                    ));
                }
                self.report.clients.push(ClientReport {
                    name: wanted.identity.to_string(),
                    bundle: folder.exists().then(|| folder.clone()),
                    certificate: has_certificate,
                    password: has_password,
                    existed: true,
                });
                let bundle = folder.join("mqtt.env").exists().then_some(folder.as_path());
                self.offer(settings, &wanted.identity, bundle, folder.join("client.crt").exists());
                continue;
            }
            let made = bundle::make(&mut self.change, &files, &issuing, &reach, wanted, self.owner)?;
            if let Some(hash) = &made.hash {
                passwords = site::edit_passwords(&passwords, &wanted.identity, Some(hash));
                changed = true;
            }
            self.events.extend(made.events);
            self.report.clients.push(ClientReport {
                name: wanted.identity.to_string(),
                bundle: made.folder.clone(),
                certificate: wanted.certificate,
                password: made.hash.is_some(),
                existed: false,
            });
            self.offer(settings, &wanted.identity, made.folder.as_deref(), wanted.certificate);
        }
        if changed {
            if !existed {
                passwords = PASSWORDS_HEADER.to_owned() + &passwords;
            }
            self.change.write(&files.passwords, passwords, 0o600, self.owner);
        }
        match existed {
            true => self.existed(&files.passwords),
            false => self.made("passwords, hashed", &files.passwords, None),
        }
        Ok(())
    }

    /// What bundles are to trust; it may not be written yet.
    fn trusted(&self, settings: &Settings, authority: &Authority) -> Result<String, Failure> {
        if let Some(pem) = self.change.content(&settings.ca_root()) {
            return Ok(pem);
        }
        Ok(bundle::ca_pem(settings)?.unwrap_or_else(|| authority.certificate_pem.clone()))
    }

    /// The first client with a bundle is the one to try it with.
    fn offer(&mut self, settings: &Settings, identity: &Identity, bundle: Option<&Path>, certificate: bool) {
        let Some(bundle) = bundle.filter(|_| self.report.reach.is_none()) else { return };
        let certs_asked = settings.listeners.iter().any(
            |listener| matches!(&listener.transport, Transport::Tls(files) if files.client_certs != ClientCerts::Off),
        );
        let (_, tls_port) = site::ports(settings);
        self.report.reach = Some(TryIt {
            bundle: bundle.to_owned(),
            name: identity.to_string(),
            tls_port: tls_port.filter(|_| certificate && certs_asked),
        });
    }

    fn ledger(&mut self, settings: &Settings) -> Result<(), Failure> {
        if self.events.is_empty() {
            return Ok(());
        }
        let path = settings.ledger();
        let existed = path.exists();
        Files::of(settings).record(&mut self.change, &self.events, self.owner)?;
        if !existed {
            self.made("ledger of certificates", &path, None);
        }
        Ok(())
    }
}

/// Keys and passwords stay out of git, whatever the checkout's own rules are, now or later.
pub(super) fn keep_out_of_git(change: &mut Transaction, config: &Path, secret: [&PathBuf; 2], owner: Option<Owner>) {
    let all = "# Secrets: nothing here belongs in git.\n*\n";
    let passwords = "# Secrets; the rest may be kept in git.\npasswd*\n.lockgate-*\n";
    for (folder, text) in [(config, passwords), (secret[0], all), (secret[1], all)] {
        let path = folder.join(".gitignore");
        if !path.exists() {
            change.write(&path, text, 0o644, owner);
        }
    }
}

pub(super) const PASSWORDS_HEADER: &str = "# NAME:HASH, a line each, written by `lockgate client`. Generated passwords have 192 random bits and need\n# no slow hash (m=64,t=1); what people choose gets one (m=19456,t=2).\n";

fn acl_text(own: bool) -> String {
    let rules = match own {
        true => "# Every identity may read and write the topics below its own name.\npattern readwrite %u/#\n",
        false => {
            "# Every identity may read and write all topics, but for those that begin with $.\npattern readwrite #\n"
        }
    };
    format!(
        "# Who may do what. A topic that nothing here allows is denied.\n\
         #   user NAME                          the lines that follow are for NAME\n\
         #   topic [read|write|readwrite|deny] TOPIC     (before any `user`: for anonymous clients)\n\
         #   pattern [read|write|readwrite|deny] TOPIC   for all; %u is the user, %c the client id\n\
         # `lockgate acl test NAME read|write TOPIC` says what holds, and by which line.\n\
         \n\
         {rules}\
         # Topics of the broker's own, should it publish any, may be read.\n\
         pattern read $SYS/#\n\
         \n\
         # For example, each device alone below devices/NAME, and one person who reads them all:\n\
         # pattern readwrite devices/%u/#\n\
         # user alice\n\
         # topic read devices/#\n"
    )
}
