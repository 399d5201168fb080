//! `lockgate init`: a site where there is none, or what is missing of one. Nothing that exists is
//! overwritten.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::PossibleValuesParser;
use serde::Serialize;
use time::OffsetDateTime;

use super::bundle::{self, Issuing, Password, Reach, Wanted};
use super::site::{self, Files};
use super::{Failure, ask};
use crate::config::{self, ClientCerts, ListenerAddress, Settings, Template, Transport};
use crate::pki::{
    self, Authority, CA_DAYS, CertificateInfo, Entry, Event, KeyType, Kind, LEAF_DAYS_MAX, Ledger, Lifetimes, Lock,
    Owner, Recovery, ServerName, Transaction,
};
use crate::types::Identity;

/// What `init` was asked for.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  lockgate init --client device1 --client pump7 --user alice --san broker.example")]
pub(super) struct Arguments {
    /// The site's folder; config/, pki/ and data/ are made in it
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    dir: PathBuf,
    /// Use /etc/lockgate and /var/lib/lockgate, and a user `lockgate` that owns all but ca.key
    #[arg(long, conflicts_with = "dir")]
    system: bool,
    /// The site's name, in the CA's subject [default: the host's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Another name or address that clients dial (repeatable)
    #[arg(long, value_name = "NAME|IP")]
    san: Vec<String>,
    /// A device: certificate and password of the same name (repeatable)
    #[arg(long, value_name = "NAME")]
    client: Vec<Identity>,
    /// A person or program with a password only (repeatable)
    #[arg(long, value_name = "NAME")]
    user: Vec<Identity>,
    /// Read the passwords of --user from standard input, a line each in their order
    #[arg(long, conflicts_with = "password_file")]
    password_stdin: bool,
    /// Read the passwords of --user from a file, a line each in their order
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// What the TLS listener asks of clients
    #[arg(long, value_name = "WHAT", default_value = "optional", value_parser = PossibleValuesParser::new(["off", "optional", "required"]))]
    client_certs: String,
    /// Who may use plain MQTT without TLS: this machine alone, all, nobody
    #[arg(long, value_name = "WHO", default_value = "loopback", value_parser = PossibleValuesParser::new(["loopback", "all", "off"]))]
    plain: String,
    /// Port of plain MQTT
    #[arg(long, value_name = "PORT", default_value_t = 1883)]
    plain_port: u16,
    /// Port of MQTT over TLS
    #[arg(long, value_name = "PORT", default_value_t = 8883)]
    tls_port: u16,
    /// Kind of all keys
    #[arg(long, value_name = "KIND", default_value = "ecdsa-p256", value_parser = PossibleValuesParser::new(["ecdsa-p256", "rsa-2048", "rsa-3072", "ed25519"]))]
    key_type: String,
    /// How long server and client certificates live, days
    #[arg(long, value_name = "DAYS", default_value_t = LEAF_DAYS_MAX, value_parser = clap::value_parser!(u32).range(1..=i64::from(LEAF_DAYS_MAX)))]
    days: u32,
    /// How long the CA lives, days
    #[arg(long, value_name = "DAYS", default_value_t = CA_DAYS, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    ca_days: u32,
    /// Let the broker use the CA's key to renew its own certificate
    #[arg(long)]
    self_renew: bool,
    /// shared: every identity may read and write all topics but $...; own: each only below NAME/
    #[arg(long, value_name = "WHICH", default_value = "shared", value_parser = PossibleValuesParser::new(["shared", "own"]))]
    acl: String,
    /// Say what was made as JSON
    #[arg(long)]
    json: bool,
    /// Ask nothing
    #[arg(long, short)]
    yes: bool,
}

/// Where a site's parts are.
#[derive(Clone, Debug)]
struct Layout {
    config: PathBuf,
    pki: PathBuf,
    data: PathBuf,
    /// As they stand in the configuration.
    data_text: &'static str,
    pki_text: &'static str,
}

impl Layout {
    fn below(folder: &Path) -> Layout {
        Layout {
            config: folder.join("config"),
            pki: folder.join("pki"),
            data: folder.join("data"),
            data_text: "../data",
            pki_text: "../pki",
        }
    }

    fn system() -> Layout {
        Layout {
            config: PathBuf::from("/etc/lockgate"),
            pki: PathBuf::from("/etc/lockgate/pki"),
            data: PathBuf::from("/var/lib/lockgate"),
            data_text: "/var/lib/lockgate",
            pki_text: "pki",
        }
    }

    fn file(&self) -> PathBuf {
        self.config.join("lockgate.yaml")
    }
}

/// What there is now, for people and for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Report {
    pub(super) configuration: PathBuf,
    made: Vec<MadeFile>,
    existed: Vec<PathBuf>,
    clients: Vec<ClientReport>,
    listeners: Vec<ListenerReport>,
    notes: Vec<String>,
    #[serde(skip)]
    reach: Option<TryIt>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct MadeFile {
    what: String,
    path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    days_left: Option<i64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct ClientReport {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    bundle: Option<PathBuf>,
    certificate: bool,
    password: bool,
    existed: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct ListenerReport {
    address: String,
    transport: String,
    open_to: String,
    demands: String,
}

/// What the printed commands use.
#[derive(Debug)]
struct TryIt {
    bundle: PathBuf,
    name: String,
    tls_port: Option<u16>,
    plain_port: Option<u16>,
    certificate: bool,
}

pub(super) fn run(mut arguments: Arguments) -> Result<(), Failure> {
    if !arguments.yes && !arguments.json && ask::is_interactive() {
        question(&mut arguments)?;
    }
    let report = make(&arguments)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report).map_err(Failure::new)?);
    } else {
        print!("{}", report.table());
        print!("{}", report.commands(&arguments.serve_command()));
    }
    Ok(())
}

/// What `up` makes where nothing exists yet.
pub(super) fn for_up(dir: &Path, plain_port: Option<u16>, tls_port: Option<u16>) -> Result<Report, Failure> {
    #[derive(clap::Parser)]
    struct Defaults {
        #[command(flatten)]
        arguments: Arguments,
    }
    let Defaults { mut arguments } = <Defaults as clap::Parser>::parse_from(["init", "--client", "device1"]);
    arguments.dir = dir.to_owned();
    arguments.plain_port = plain_port.unwrap_or(arguments.plain_port);
    arguments.tls_port = tls_port.unwrap_or(arguments.tls_port);
    make(&arguments)
}

/// The few things that matter, with good defaults.
fn question(arguments: &mut Arguments) -> Result<(), Failure> {
    if arguments.layout()?.file().exists() {
        return Ok(());
    }
    let host = pki::host_names().host;
    if arguments.name.is_none() {
        arguments.name = Some(ask::text("Name of this site:", &host, "it stands in the CA's subject")?);
    }
    if arguments.san.is_empty() {
        let answer = ask::text(
            "More names or addresses that clients dial:",
            "",
            "separated by spaces; this host's own are included",
        )?;
        arguments.san = answer.split_whitespace().map(str::to_owned).collect();
    }
    if arguments.client.is_empty() && arguments.user.is_empty() {
        let answer =
            ask::text("Devices to make certificates and passwords for:", "device1", "names separated by spaces")?;
        for name in answer.split_whitespace() {
            arguments.client.push(name.parse().map_err(|error| Failure::new(format!("{name:?}: {error}")))?);
        }
    }
    if arguments.plain == "loopback"
        && !ask::confirm("Let this machine itself use plain MQTT on 1883?", true, "other machines always need TLS")?
    {
        arguments.plain = "off".to_owned();
    }
    if !arguments.self_renew {
        arguments.self_renew = ask::confirm(
            "May the broker use the CA's key to renew its own certificate?",
            false,
            "yes: no renewal to remember; no: whoever breaks into the broker cannot make certificates",
        )?;
    }
    Ok(())
}

impl Arguments {
    fn layout(&self) -> Result<Layout, Failure> {
        Ok(match self.system {
            true => Layout::system(),
            false if self.dir == Path::new(".") => Layout::below(Path::new("")),
            false => Layout::below(&self.dir),
        })
    }

    fn serve_command(&self) -> String {
        match self.system {
            true => "systemctl enable --now lockgate".to_owned(),
            false if self.dir == Path::new(".") => "lockgate serve".to_owned(),
            false => format!("lockgate serve --dir {}", shell(&self.dir)),
        }
    }

    fn key_type(&self) -> KeyType {
        KeyType::parse(&self.key_type).expect("clap takes no other")
    }
}

fn make(arguments: &Arguments) -> Result<Report, Failure> {
    let mut sans = Vec::new();
    for text in &arguments.san {
        sans.push(ServerName::parse(text).map_err(|error| Failure::configuration(format!("--san {error}")))?);
    }
    let wanted = wanted(arguments)?;
    let owner = if arguments.system { Some(system_user()?) } else { None };
    let layout = arguments.layout()?;
    std::fs::create_dir_all(&layout.config)
        .map_err(|error| Failure::new(format!("cannot make {}: {error}", layout.config.display())))?;
    restrict(&layout.config, owner)?;
    let lock = Lock::acquire(&layout.config)?;
    let recovery = pki::recover(&layout.config, &[&layout.config, &layout.pki])?;
    let mut maker = Maker {
        arguments,
        layout: &layout,
        owner,
        now: OffsetDateTime::now_utc(),
        change: Transaction::new(&layout.config),
        events: Vec::new(),
        report: Report {
            configuration: layout.file(),
            made: Vec::new(),
            existed: Vec::new(),
            clients: Vec::new(),
            listeners: Vec::new(),
            notes: Vec::new(),
            reach: None,
        },
    };
    match recovery {
        Recovery::Nothing => {}
        Recovery::Finished => maker.note("an interrupted change was found and finished"),
        Recovery::Undone => maker.note("an interrupted change was found and undone"),
    }
    maker.make(&sans, &wanted)?;
    let Maker { change, report, .. } = maker;
    change.commit()?;
    drop(lock);
    Ok(report)
}

fn restrict(folder: &Path, owner: Option<Owner>) -> Result<(), Failure> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let failed = |error: std::io::Error| Failure::new(format!("cannot protect {}: {error}", folder.display()));
    let metadata = std::fs::metadata(folder).map_err(failed)?;
    // A folder of a git checkout, with samples in it, stays as it is but for others' access.
    if metadata.mode() & 0o077 != 0 {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    if let Some(owner) = owner {
        std::os::unix::fs::chown(folder, Some(owner.uid), Some(owner.gid)).map_err(failed)?;
    }
    Ok(())
}

fn wanted(arguments: &Arguments) -> Result<Vec<Wanted>, Failure> {
    let mut passwords = match (arguments.password_stdin, &arguments.password_file) {
        (false, None) => None,
        (_, file) => Some(ask::password_lines(file.as_deref())?.into_iter()),
    };
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for identity in &arguments.client {
        all.push(Wanted { identity: identity.clone(), certificate: true, password: Password::Generated });
    }
    for identity in &arguments.user {
        let password = match &mut passwords {
            Some(lines) => match lines.next() {
                Some(line) if !line.is_empty() => Password::Given(line),
                _ => {
                    return Err(Failure::configuration(format!(
                        "there is no password for --user {identity}: one line each is expected"
                    )));
                }
            },
            None if !arguments.yes && !arguments.json && ask::is_interactive() => {
                ask::new_password(identity.as_str())?.map_or(Password::Generated, Password::Given)
            }
            None => Password::Generated,
        };
        all.push(Wanted { identity: identity.clone(), certificate: false, password });
    }
    for wanted in &all {
        if !seen.insert(wanted.identity.clone()) {
            return Err(Failure::configuration(format!(
                "{} is named twice: a device has a password already",
                wanted.identity
            )));
        }
    }
    Ok(all)
}

/// The user `lockgate`, made where it is missing.
fn system_user() -> Result<Owner, Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new("--system writes to /etc and /var/lib: run it as root"));
    }
    let find =
        || uzers::get_user_by_name("lockgate").map(|user| Owner { uid: user.uid(), gid: user.primary_group_id() });
    if let Some(owner) = find() {
        return Ok(owner);
    }
    let status = std::process::Command::new("useradd")
        .args(["--system", "--user-group", "--home-dir", "/var/lib/lockgate", "--no-create-home"])
        .args(["--shell", "/usr/sbin/nologin", "lockgate"])
        .status()
        .map_err(|error| Failure::new(format!("cannot make the user lockgate: useradd: {error}")))?;
    find().ok_or_else(|| Failure::new(format!("cannot make the user lockgate: useradd said {status}")))
}

struct Maker<'a> {
    arguments: &'a Arguments,
    layout: &'a Layout,
    owner: Option<Owner>,
    now: OffsetDateTime,
    change: Transaction,
    events: Vec<Event>,
    report: Report,
}

impl Maker<'_> {
    fn make(&mut self, sans: &[ServerName], wanted: &[Wanted]) -> Result<(), Failure> {
        let host = pki::host_names();
        let site = self.arguments.name.clone().unwrap_or_else(|| match host.host.is_empty() {
            true => "lockgate".to_owned(),
            false => host.host.clone(),
        });
        self.folders()?;
        let settings = self.configuration(&site)?;
        let authority = self.authority(&settings, &site)?;
        self.server(&settings, &authority, &host, sans, &site)?;
        self.clients(&settings, &authority, &site, wanted)?;
        self.ledger(&settings)?;
        self.report.listeners = settings.listeners.iter().map(listener_report).collect();
        if self.arguments.key_type() == KeyType::Ed25519 {
            self.note("Ed25519 keys: clients with mbedTLS (many microcontrollers) cannot use them");
        }
        Ok(())
    }

    fn note(&mut self, note: impl Into<String>) {
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
        // Keys and passwords stay out of git, whatever the checkout's own rules are.
        if is_in_git(&self.layout.config) {
            for folder in [&self.layout.config, &self.layout.pki, &self.layout.data] {
                let path = folder.join(".gitignore");
                if !path.exists() {
                    self.change.write(
                        &path,
                        "# Secrets and state: nothing here belongs in git.\n*\n",
                        0o644,
                        self.owner,
                    );
                }
            }
        }
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
                "{} exists and is not changed: {} is not applied; edit the file",
                file.display(),
                not_applied.join(", ")
            ));
        }
    }

    fn authority(&mut self, settings: &Settings, site: &str) -> Result<Option<Authority>, Failure> {
        let (certificate, key) = (settings.ca_certificate(), settings.ca_key());
        match (certificate.exists(), key.exists()) {
            (true, true) => {
                self.existed(&certificate);
                self.existed(&key);
                bundle::load_authority(&certificate, &key).map(Some)
            }
            (true, false) => {
                self.existed(&certificate);
                let info = CertificateInfo::read(&certificate)?;
                if !info.is_ca {
                    return Err(Failure::new(format!(
                        "{}: it is no CA: its basic constraints lack CA:TRUE",
                        certificate.display()
                    )));
                }
                Ok(None)
            }
            (false, true) => Err(Failure::new(format!(
                "{} exists and {} does not: put the certificate back, or move the key away to make a new CA",
                key.display(),
                certificate.display()
            ))),
            (false, false) => {
                let lifetimes = Lifetimes { ca_days: self.arguments.ca_days, leaf_days: self.arguments.days };
                let key_type = self.arguments.key_type();
                let (authority, issued) =
                    Authority::create(site, key_type, lifetimes, self.now).map_err(Failure::new)?;
                // The key stays root's, unless the broker is to use it.
                let key_owner = match self.owner {
                    Some(_) if !settings.self_renew => Some(Owner { uid: 0, gid: 0 }),
                    owner => owner,
                };
                self.change.write(&certificate, issued.certificate_pem.as_str(), 0o644, self.owner);
                self.change.write(&key, issued.key_pem.as_str(), 0o600, key_owner);
                self.events.push(Event::Issued(Entry::of(&issued.info, Kind::Ca, None, key_type, self.now)));
                self.made("CA certificate", &certificate, Some(&issued.info));
                self.made("CA key", &key, None);
                Ok(Some(authority))
            }
        }
    }

    fn server(
        &mut self,
        settings: &Settings,
        authority: &Option<Authority>,
        host: &pki::HostNames,
        sans: &[ServerName],
        site: &str,
    ) -> Result<(), Failure> {
        let tls = settings.listeners.iter().find_map(|listener| match &listener.transport {
            Transport::Tls(files) => Some(files),
            _ => None,
        });
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
                let key_type = self.arguments.key_type();
                let issued = authority
                    .issue_server(site, &names, key_type, self.arguments.days, self.now)
                    .map_err(Failure::new)?;
                self.change.write(certificate, issued.certificate_pem.as_str(), 0o644, self.owner);
                self.change.write(key, issued.key_pem.as_str(), 0o600, self.owner);
                self.events.push(Event::Issued(Entry::of(&issued.info, Kind::Server, None, key_type, self.now)));
                self.made("server certificate", certificate, Some(&issued.info));
                self.made("server key", key, None);
                let list: Vec<String> = names.iter().map(ToString::to_string).collect();
                self.note(format!("the server certificate is for {}; add names with --san", list.join(", ")));
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
                "{}: the server certificate expired on {}: remove it and its key and run `lockgate init` again",
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
            self.note(format!(
                "{} exists and does not name {}: remove it and its key and run this again to have it made anew",
                certificate.display(),
                missing.join(", ")
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
                self.report.clients.push(ClientReport {
                    name: wanted.identity.to_string(),
                    bundle: folder.exists().then(|| folder.clone()),
                    certificate: has_certificate,
                    password: has_password,
                    existed: true,
                });
                self.offer(&wanted.identity, &folder, has_certificate, &reach);
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
            self.offer(&wanted.identity, &folder, wanted.certificate, &reach);
        }
        if changed {
            if passwords.is_empty() {
                passwords =
                    "# NAME:HASH, a line each. Written by `lockgate client` and `lockgate passwd`.\n".to_owned();
            }
            self.change.write(&files.passwords, passwords, 0o600, self.owner);
        }
        match existed {
            true => self.existed(&files.passwords),
            false => self.made("passwords, hashed", &files.passwords, None),
        }
        Ok(())
    }

    /// The first client with a bundle is the one to try it with.
    fn offer(&mut self, identity: &Identity, folder: &Path, certificate: bool, reach: &Reach) {
        if self.report.reach.is_none() {
            self.report.reach = Some(TryIt {
                bundle: folder.to_owned(),
                name: identity.to_string(),
                tls_port: reach.tls_port,
                plain_port: reach.plain_port,
                certificate: certificate && self.arguments.client_certs != "off",
            });
        }
    }

    fn ledger(&mut self, settings: &Settings) -> Result<(), Failure> {
        if self.events.is_empty() {
            return Ok(());
        }
        let path = settings.ledger();
        let existed = path.exists();
        let text = site::read_or_empty(&path)? + &Ledger::lines(&self.events);
        self.change.write(&path, text, 0o600, self.owner);
        if !existed {
            self.made("ledger of certificates", &path, None);
        }
        Ok(())
    }
}

fn is_in_git(folder: &Path) -> bool {
    let Ok(absolute) = std::path::absolute(folder) else { return false };
    absolute.ancestors().any(|folder| folder.join(".git").exists())
}

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
         #   topic [read|write|readwrite|deny] TOPIC\n\
         #   pattern [read|write|readwrite|deny] TOPIC   for all; %u is the user, %c the client id\n\
         # `lockgate acl test NAME read|write TOPIC` says what holds, and by which line.\n\
         \n\
         {rules}\
         # The broker's own topics may be read.\n\
         pattern read $SYS/#\n\
         \n\
         # For example, each device alone below devices/NAME, and one person who reads them all:\n\
         # pattern readwrite devices/%u/#\n\
         # user alice\n\
         # topic read devices/#\n"
    )
}

fn listener_report(listener: &config::Listener) -> ListenerReport {
    let (open_to, port) = match &listener.address {
        ListenerAddress::Loopback(port) => ("this machine alone (127.0.0.1 and ::1)".to_owned(), Some(*port)),
        ListenerAddress::All(port) => ("every machine that reaches this one".to_owned(), Some(*port)),
        ListenerAddress::Ip(address, port) => (format!("whoever reaches {address}"), Some(*port)),
        ListenerAddress::Unix(path) => (format!("programs here, through {}", path.display()), None),
    };
    let certificates = match &listener.transport {
        Transport::Tls(files) => match files.client_certs {
            ClientCerts::Off => "a password",
            ClientCerts::Optional => "a certificate or a password",
            ClientCerts::Required => "a certificate",
        },
        _ => "a password",
    };
    let demands = match listener.rules.allow_anonymous {
        true => format!("{certificates}, or nothing"),
        false => certificates.to_owned(),
    };
    ListenerReport {
        address: port.map_or_else(|| listener.address.to_string(), |port| port.to_string()),
        transport: match listener.transport {
            Transport::Tcp => "plain MQTT".to_owned(),
            Transport::Tls(_) => "MQTT over TLS".to_owned(),
            Transport::Unix => "unix socket".to_owned(),
        },
        open_to,
        demands,
    }
}

fn shell(path: &Path) -> String {
    let text = path.to_string_lossy();
    shlex::try_quote(&text).map_or_else(|_| text.to_string(), |quoted| quoted.into_owned())
}

impl Report {
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        if !self.made.is_empty() || self.clients.iter().any(|client| !client.existed) {
            let mut table = new_table(&["Made", "Where", "Days left", "SHA-256"]);
            for made in &self.made {
                let days = made.days_left.map(|days| days.to_string()).unwrap_or_default();
                let short = made.fingerprint.as_deref().map(|full| format!("{}…", &full[..23])).unwrap_or_default();
                table.add_row([&made.what, &made.path.display().to_string(), &days, &short]);
            }
            for client in self.clients.iter().filter(|client| !client.existed) {
                let what = match (client.certificate, client.password) {
                    (true, true) => "certificate, password",
                    (true, false) => "certificate",
                    _ => "password",
                };
                let place = client
                    .bundle
                    .as_ref()
                    .map_or("(only its hash is kept)".to_owned(), |path| path.display().to_string() + "/");
                table.add_row([&format!("{}: {what}", client.name), &place, "", ""]);
            }
            text.push_str(&format!("{table}\n"));
            let ca = self.made.iter().find(|made| made.what == "CA certificate");
            if let Some(fingerprint) = ca.and_then(|made| made.fingerprint.as_deref()) {
                text.push_str(&format!("The CA's SHA-256 fingerprint: {fingerprint}\n"));
            }
        }
        let existing = self.existed.len() + self.clients.iter().filter(|client| client.existed).count();
        if existing > 0 {
            text.push_str("\nExisted, and was not changed:\n");
            for path in &self.existed {
                text.push_str(&format!("  {}\n", path.display()));
            }
            for client in self.clients.iter().filter(|client| client.existed) {
                text.push_str(&format!("  client {}\n", client.name));
            }
        }
        text.push('\n');
        let mut table = new_table(&["Port", "Speaks", "Open to", "Asks for"]);
        for listener in &self.listeners {
            table.add_row([&listener.address, &listener.transport, &listener.open_to, &listener.demands]);
        }
        text.push_str(&format!("{table}\n"));
        if self
            .listeners
            .iter()
            .any(|listener| listener.transport == "plain MQTT" && listener.open_to.starts_with("this machine"))
        {
            text.push_str(&format!(
                "Plain MQTT is for this machine alone. To open it to the network, which lets anybody on the\nway read passwords and messages, set `address: all` on that listener in {}.\n",
                self.configuration.display()
            ));
        }
        for note in &self.notes {
            text.push_str(&format!("Note: {note}\n"));
        }
        text
    }

    /// Commands that work as they are printed.
    pub(super) fn commands(&self, serve: &str) -> String {
        let Some(reach) = &self.reach else {
            return format!("\nStart the broker:\n  {serve}\n\nAdd a client:\n  lockgate client add device1\n");
        };
        let start = if serve.is_empty() { String::new() } else { format!("\nStart the broker:\n  {serve}\n") };
        format!("{start}\nTry it, in two other terminals:\n{}{}", reach.mosquitto(), reach.python())
    }
}

impl TryIt {
    fn mosquitto(&self) -> String {
        let topic = format!("{}/hello", self.name);
        let file = |name: &str| shell(&self.bundle.join(name));
        let options = match (self.tls_port, self.certificate, self.plain_port) {
            (Some(port), true, _) => format!(
                "-h localhost -p {port} --cafile {} \\\n    --cert {} --key {}",
                file("ca.crt"),
                file("client.crt"),
                file("client.key")
            ),
            (Some(port), false, _) => {
                return self.with_environment(&format!("-h localhost -p {port} --cafile {}", file("ca.crt")), &topic);
            }
            (None, _, Some(port)) => return self.with_environment(&format!("-h localhost -p {port}"), &topic),
            (None, _, None) => return String::new(),
        };
        format!(
            "  mosquitto_sub {options} \\\n    -t {topic} -v\n\n  mosquitto_pub {options} \\\n    -t {topic} -m 'The gate is open'\n"
        )
    }

    /// The password comes from the bundle by way of the environment: it is not shown.
    fn with_environment(&self, options: &str, topic: &str) -> String {
        let environment = shell(&self.bundle.join("mqtt.env"));
        format!(
            "  . {environment}; mosquitto_sub {options} \\\n    -u \"$MQTT_USER\" -P \"$MQTT_PASSWORD\" -t {topic} -v\n\n  \
             . {environment}; mosquitto_pub {options} \\\n    -u \"$MQTT_USER\" -P \"$MQTT_PASSWORD\" -t {topic} -m 'The gate is open'\n"
        )
    }

    fn python(&self) -> String {
        let environment = self.bundle.join("mqtt.env").display().to_string();
        let topic = format!("{}/hello", self.name);
        format!(
            r#"
From Python (pip install 'paho-mqtt>=2'):
python3 - <<'PYTHON'
import paho.mqtt.client as mqtt
env = dict(line.strip().split("=", 1) for line in open("{environment}"))
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
if "MQTT_USER" in env:
    client.username_pw_set(env["MQTT_USER"], env["MQTT_PASSWORD"])
if env["MQTT_USE_TLS"] == "true":
    client.tls_set(env["MQTT_CA_CERTS"], env.get("MQTT_CERTFILE"), env.get("MQTT_KEYFILE"))
client.connect(env["MQTT_HOST"], int(env["MQTT_PORT"]))
client.loop_start()
client.publish("{topic}", "The gate is open, says Python", qos=1).wait_for_publish(10)
client.disconnect()
PYTHON
"#
        )
    }
}

pub(super) fn new_table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(header);
    table
}
