//! `lockgate client`: who may connect.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use serde::Serialize;
use time::OffsetDateTime;

use super::bundle::{self, Export, Issuing, Password, Reach, Wanted};
use super::environment::Environment;
use super::report::new_table;
use super::site::{self, Files};
use super::{Failure, SiteArguments, ask};
use crate::admin::{CallError, api};
use crate::auth::{self, Cost};
use crate::config::Settings;
use crate::gate::{Seen, SeenEntry};
use crate::pki::{Event, KeyType, LEAF_DAYS_MAX, Ledger, Lock, Owner, Transaction};
use crate::types::{Identity, Level};

#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Add a device, an application or a person
    #[command(after_help = "Example:\n  lockgate client add pump7 --min-level mtls")]
    Add(Add),
    /// List everybody: what they have, how they are connected, when they were last seen
    #[command(after_help = "Example:\n  lockgate client list --json")]
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        site: SiteArguments,
    },
    /// Show one identity
    #[command(after_help = "Example:\n  lockgate client show pump7")]
    Show {
        /// Whom
        name: Identity,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        site: SiteArguments,
    },
    /// Make a bundle for another machine
    #[command(
        after_help = "Example:\n  lockgate client env pump7 --level mtls --host broker.local --path-prefix /etc/pump"
    )]
    Env(Env),
    /// Set a password: a generated one, unless it is given
    #[command(after_help = "Example:\n  lockgate client passwd alice")]
    Passwd(Passwd),
    /// Remove an identity: password and certificate stop working, sessions end
    #[command(after_help = "Example:\n  lockgate client remove pump7")]
    Remove {
        /// Whom
        name: Identity,
        #[command(flatten)]
        site: SiteArguments,
    },
    /// Disconnect; the client may come back
    #[command(after_help = "Example:\n  lockgate client kick pump7")]
    Kick {
        /// An identity's name, or a client id
        name: String,
        #[command(flatten)]
        site: SiteArguments,
    },
}

#[derive(Args)]
struct Add {
    /// Letters, digits, '.', '_' and '-', 64 at the most
    name: Identity,
    /// A password only
    #[arg(long, conflicts_with = "no_password")]
    no_cert: bool,
    /// A certificate only
    #[arg(long)]
    no_password: bool,
    /// Refuse it where it is less protected
    #[arg(long, value_name = "LEVEL", value_parser = PossibleValuesParser::new(["plain", "tls", "mtls"]))]
    min_level: Option<String>,
    /// Read the password from standard input
    #[arg(long, conflicts_with = "no_password")]
    password_stdin: bool,
    /// Read the password from a file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["password_stdin", "no_password"])]
    password_file: Option<PathBuf>,
    /// Kind of the key
    #[arg(long, value_name = "KIND", default_value = "ecdsa-p256", value_parser = PossibleValuesParser::new(["ecdsa-p256", "rsa-2048", "rsa-3072", "ed25519"]))]
    key_type: String,
    /// How long the certificate lives, days
    #[arg(long, value_name = "DAYS", default_value_t = LEAF_DAYS_MAX, value_parser = clap::value_parser!(u32).range(1..=i64::from(LEAF_DAYS_MAX)))]
    days: u32,
    #[command(flatten)]
    site: SiteArguments,
}

#[derive(Args)]
struct Env {
    /// Letters, digits, '.', '_' and '-', 64 at the most
    name: Identity,
    /// What it is to connect with: without TLS, with TLS and password, with TLS and certificate
    #[arg(long, value_name = "LEVEL", value_parser = PossibleValuesParser::new(["plain", "tls", "mtls"]))]
    level: String,
    /// The name or address by which that machine reaches this broker [default: this host's name]
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Where the files will lie on that machine [default: where they are written]
    #[arg(long, value_name = "FOLDER")]
    path_prefix: Option<PathBuf>,
    /// The user, or uid:gid, to whom the files are to belong
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
    /// The folder to write [default: NAME-LEVEL]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    #[command(flatten)]
    site: SiteArguments,
}

#[derive(Args)]
struct Passwd {
    /// Letters, digits, '.', '_' and '-', 64 at the most
    name: Identity,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Read the password from a file
    #[arg(long, value_name = "FILE", conflicts_with = "password_stdin")]
    password_file: Option<PathBuf>,
    #[command(flatten)]
    site: SiteArguments,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Add(arguments) => add(&arguments),
        Command::List { json, site } => list(&site, json),
        Command::Show { name, json, site } => show(&site, &name, json),
        Command::Env(arguments) => env(&arguments),
        Command::Passwd(arguments) => passwd(&arguments),
        Command::Remove { name, site } => remove(&site, &name),
        Command::Kick { name, site } => kick(&site, name),
    }
}

/// A site under the lock of its files, with what was interrupted mended.
struct Editing {
    settings: Settings,
    files: Files,
    owner: Option<Owner>,
    _lock: Lock,
}

fn edit(arguments: &SiteArguments) -> Result<Editing, Failure> {
    let path = site::find_configuration(arguments)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let lock = Lock::acquire(folder)?;
    // The configuration says where the rest of the site is; it may itself be among what was
    // interrupted, and then only `init` can tell.
    let settings = site::load(arguments)?;
    let files = Files::of(&settings);
    files.recover()?;
    let owner = files.owner();
    Ok(Editing { settings, files, owner, _lock: lock })
}

fn passwords(files: &Files) -> Result<(String, BTreeSet<Identity>), Failure> {
    let text = site::read_or_empty(&files.passwords)?;
    let lines = auth::parse_passwords(&text)
        .map_err(|errors| Failure::configuration(format!("{}: {}", files.passwords.display(), errors[0])))?;
    let names = lines.into_iter().map(|line| line.identity).collect();
    Ok((text, names))
}

fn add(arguments: &Add) -> Result<(), Failure> {
    let given = match (arguments.password_stdin, &arguments.password_file) {
        (false, None) => None,
        (_, file) => Some(ask::one_password(file.as_deref())?),
    };
    let editing = edit(&arguments.site)?;
    let Editing { settings, files, owner, .. } = &editing;
    let name = &arguments.name;
    let (text, names) = passwords(files)?;
    let ledger = files.ledger()?;
    if names.contains(name) || !ledger.current_of(name).is_empty() {
        return Err(Failure::new(format!(
            "{name} exists: `lockgate client show {name}` says what it has, `lockgate client remove {name}` makes room"
        )));
    }
    let authority = if arguments.no_cert { None } else { Some(bundle::authority(settings)?) };
    let (plain_port, tls_port) = site::ports(settings);
    let reach = Reach { host: "localhost".to_owned(), plain_port, tls_port };
    let issuing = Issuing {
        authority: authority.as_ref(),
        ca_pem: bundle::ca_pem(settings)?,
        site: &settings.name,
        key_type: KeyType::parse(&arguments.key_type).expect("clap takes no other"),
        days: arguments.days,
        now: OffsetDateTime::now_utc(),
    };
    let wanted = Wanted {
        identity: name.clone(),
        certificate: !arguments.no_cert,
        password: match (arguments.no_password, given) {
            (true, _) => Password::None,
            (false, Some(password)) => Password::Given(password),
            (false, None) => Password::Generated,
        },
    };
    let mut change = Transaction::new(&files.anchor);
    let made = bundle::make(&mut change, files, &issuing, &reach, &wanted, *owner)?;
    if let Some(hash) = &made.hash {
        change.write(&files.passwords, site::edit_passwords(&text, name, Some(hash)), 0o600, *owner);
    }
    if !made.events.is_empty() {
        change.write(&files.ledger, files.ledger_text()? + &Ledger::lines(&made.events), 0o600, *owner);
    }
    if let Some(level) = arguments.min_level.as_deref().and_then(Level::parse) {
        change.write(&files.identities, site::edit_identities(&files.identities, name, Some(level))?, 0o600, *owner);
    }
    change.commit()?;
    let what = match (made.events.is_empty(), made.hash.is_some()) {
        (false, true) => "a certificate and a password",
        (false, false) => "a certificate",
        _ => "a password",
    };
    say!("{name} has {what}.");
    if let Some(folder) = &made.folder {
        say!("  bundle: {}/ (mqtt.env is ready for an application)", folder.display());
    }
    if let (Some(fingerprint), Some(expires)) = (&made.fingerprint, &made.expires) {
        say!("  certificate: expires {expires}, SHA-256 {fingerprint}");
    }
    if let Some(level) = &arguments.min_level {
        say!("  minimum level: {level}");
    }
    learned(editing)
}

/// Tells a running broker, when the site's lock is free again.
fn learned(editing: Editing) -> Result<(), Failure> {
    let Editing { settings, _lock: lock, .. } = editing;
    drop(lock);
    say!("  {}", site::tell_broker(&settings)?);
    Ok(())
}

fn env(arguments: &Env) -> Result<(), Failure> {
    let settings = site::load(&arguments.site)?;
    let level = Level::parse(&arguments.level).expect("clap takes no other");
    let files = Files::of(&settings);
    let (_, names) = passwords(&files)?;
    if !names.contains(&arguments.name) && files.ledger()?.current_of(&arguments.name).is_empty() {
        return Err(nobody(&arguments.name));
    }
    let out = arguments.out.clone().unwrap_or_else(|| PathBuf::from(format!("{}-{level}", arguments.name)));
    let host = match &arguments.host {
        Some(host) => host.clone(),
        None => crate::pki::host_names().host,
    };
    let prefix = match &arguments.path_prefix {
        Some(prefix) => prefix.clone(),
        None => std::path::absolute(&out).map_err(Failure::new)?,
    };
    let owner = arguments.owner.as_deref().map(find_owner).transpose()?;
    let export = Export { identity: &arguments.name, level, host: host.clone(), prefix };
    let made = export.files(&settings)?;
    if out.exists() {
        return Err(Failure::new(format!("{} exists: name another folder with --out", out.display())));
    }
    crate::pki::write_folder(&out, &made, owner)?;
    say!("{}: a bundle for {} to connect to {host} at level {level}", out.display(), arguments.name);
    if level == Level::Plain {
        say!("  without TLS: whoever is on the way reads its password and its messages");
    }
    let environment = site::read_or_empty(&files.bundles.join(arguments.name.as_str()).join("mqtt.env"))?;
    let has_password = Environment::value(&environment, "MQTT_PASSWORD").is_some();
    let levels = crate::gate::read_min_levels(&settings).map_err(Failure::configuration)?;
    let min_level = levels.get(&arguments.name).copied().unwrap_or_default();
    for warning in export.warnings(&settings, has_password, min_level) {
        say!("  warning: {warning}");
    }
    Ok(())
}

fn nobody(name: &Identity) -> Failure {
    Failure::new(format!(
        "there is no {name}: `lockgate client list` shows who there is, `lockgate client add {name}` makes it"
    ))
}

fn find_owner(text: &str) -> Result<Owner, Failure> {
    if let Some(user) = uzers::get_user_by_name(text) {
        return Ok(Owner { uid: user.uid(), gid: user.primary_group_id() });
    }
    let numbers =
        text.split_once(':').and_then(|(uid, gid)| Some(Owner { uid: uid.parse().ok()?, gid: gid.parse().ok()? }));
    numbers
        .ok_or_else(|| Failure::new(format!("--owner {text:?} is no user of this machine; uid:gid is understood too")))
}

fn passwd(arguments: &Passwd) -> Result<(), Failure> {
    let given = match (arguments.password_stdin, &arguments.password_file) {
        (false, None) if ask::is_interactive() => ask::new_password(arguments.name.as_str())?,
        (false, None) => None,
        (_, file) => Some(ask::one_password(file.as_deref())?),
    };
    let editing = edit(&arguments.site)?;
    let Editing { settings, files, owner, .. } = &editing;
    let name = &arguments.name;
    let (text, names) = passwords(files)?;
    if !names.contains(name) && files.ledger()?.current_of(name).is_empty() {
        return Err(nobody(name));
    }
    let (password, cost) = match given {
        Some(password) => (password, Cost::Human),
        None => (site::generate_secret(), Cost::Generated),
    };
    let mut change = Transaction::new(&files.anchor);
    change.write(
        &files.passwords,
        site::edit_passwords(&text, name, Some(&site::hash(&password, cost))),
        0o600,
        *owner,
    );
    let folder = files.bundles.join(name.as_str());
    let environment = folder.join("mqtt.env");
    let here = site::read_or_empty(&environment)?;
    // A generated one goes into the bundle, where somebody can read it once; what a person chose is
    // written nowhere, and an old one that a bundle holds is of no use any more.
    let holds = cost == Cost::Generated;
    let text = match (holds, here.is_empty()) {
        (true, true) => Some(new_environment(settings, name, &password)?),
        (true, false) => {
            Some(Environment::with_password(&here, Some(name.as_str()), Some(&password)).map_err(Failure::new)?)
        }
        (false, true) => None,
        (false, false) => Some({
            // With a certificate, a name without its password would only be refused.
            let user = (!folder.join("client.crt").exists()).then_some(name.as_str());
            Environment::with_password(&here, user, None).map_err(Failure::new)?
        }),
    };
    if let Some(text) = text {
        change.folder(&files.bundles, 0o700, *owner);
        change.folder(&folder, 0o700, *owner);
        change.write(&environment, text, 0o600, *owner);
    }
    change.commit()?;
    say!("{name} has a new password.");
    match (holds, Environment::value(&here, "MQTT_PASSWORD").is_some()) {
        (true, _) => say!("  it is in {}", environment.display()),
        (false, true) => say!("  the old one was taken out of {}", environment.display()),
        (false, false) => {}
    }
    say!("  connections that were made with the old one stay; `lockgate client kick {name}` ends them");
    learned(editing)
}

fn new_environment(settings: &Settings, name: &Identity, password: &str) -> Result<String, Failure> {
    let (plain_port, tls_port) = site::ports(settings);
    let environment = Environment {
        host: "localhost".to_owned(),
        port: tls_port.or(plain_port).unwrap_or(8883),
        use_tls: tls_port.is_some(),
        ca_certs: match tls_port {
            Some(_) => Some(super::environment::path_text(
                &std::path::absolute(settings.ca_certificate()).map_err(Failure::new)?,
            )),
            None => None,
        },
        user: Some(name.to_string()),
        password: Some(password.to_owned()),
        certificate: None,
    };
    environment.render().map_err(Failure::new)
}

fn remove(arguments: &SiteArguments, name: &Identity) -> Result<(), Failure> {
    let editing = edit(arguments)?;
    let Editing { files, owner, .. } = &editing;
    let (text, names) = passwords(files)?;
    let ledger = files.ledger()?;
    let certificates = ledger.current_of(name);
    let folder = files.bundles.join(name.as_str());
    if !names.contains(name) && certificates.is_empty() && !folder.exists() {
        return Err(Failure::new(format!("there is no {name}: `lockgate client list` shows who there is")));
    }
    let mut change = Transaction::new(&files.anchor);
    if names.contains(name) {
        change.write(&files.passwords, site::edit_passwords(&text, name, None), 0o600, *owner);
    }
    if !certificates.is_empty() {
        let now = OffsetDateTime::now_utc();
        let at = now.replace_nanosecond(0).unwrap_or(now);
        let revoked: Vec<Event> = certificates
            .iter()
            .map(|entry| Event::Revoked { at, serial: entry.serial.clone(), reason: "removed".to_owned() })
            .collect();
        change.write(&files.ledger, files.ledger_text()? + &Ledger::lines(&revoked), 0o600, *owner);
    }
    if files.identities.exists() {
        change.write(&files.identities, site::edit_identities(&files.identities, name, None)?, 0o600, *owner);
    }
    if folder.exists() {
        change.remove(&folder);
    }
    let count = certificates.len();
    change.commit()?;
    say!("{name} is removed: its password and {count} certificate(s) admit no more.");
    learned(editing)
}

fn kick(arguments: &SiteArguments, name: String) -> Result<(), Failure> {
    let settings = site::load(arguments)?;
    let kicked: api::Kicked =
        site::ask(&settings, "/kick", Some(&api::Kick { name: name.clone() })).map_err(Failure::new)?;
    match kicked.connections {
        0 => Err(Failure::new(format!("{name} is not connected: `lockgate client list` shows who is"))),
        count => {
            say!("{name}: {count} connection(s) ended");
            Ok(())
        }
    }
}

/// One identity, from the files and from the running broker.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Row {
    name: String,
    password: bool,
    certificates: Vec<CertificateRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_level: Option<String>,
    connections: Vec<api::Connection>,
    sessions: Vec<api::Client>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen: Option<SeenEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bundle: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct CertificateRow {
    serial: String,
    expires: String,
    days_left: i64,
    fingerprint: String,
}

/// Everybody, and whether a broker runs.
fn rows(settings: &Settings) -> Result<(Vec<Row>, bool), Failure> {
    let files = Files::of(settings);
    let (_, names) = passwords(&files)?;
    let ledger = files.ledger()?;
    let now = OffsetDateTime::now_utc();
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for name in &names {
        entry(&mut rows, name.as_str()).password = true;
    }
    let current = ledger.current();
    for owner in current.values().collect::<BTreeSet<_>>() {
        for certificate in ledger.current_of(owner) {
            entry(&mut rows, owner.as_str()).certificates.push(CertificateRow {
                serial: certificate.serial.clone(),
                expires: certificate.expires.date().to_string(),
                days_left: (certificate.expires - now).whole_days(),
                fingerprint: certificate.fingerprint.clone(),
            });
        }
    }
    let asked = site::ask::<api::Clients>(settings, "/clients", None::<&()>);
    let seen;
    let running = match asked {
        Ok(clients) => {
            seen = clients.seen;
            for client in clients.clients {
                let name = client.identity.clone().unwrap_or_else(|| "(anonymous)".to_owned());
                let row = entry(&mut rows, &name);
                row.connections.extend(client.connection.clone());
                row.sessions.push(client);
            }
            true
        }
        Err(CallError::NotRunning(_)) => {
            seen = Seen::load(&settings.data.join("seen.json")).entries();
            false
        }
        Err(error) => return Err(Failure::new(error)),
    };
    let levels = crate::gate::read_min_levels(settings).map_err(Failure::configuration)?;
    for (name, seen) in seen {
        if let Some(row) = rows.get_mut(&name) {
            row.last_seen = Some(seen);
        }
    }
    for (name, row) in &mut rows {
        row.min_level = levels.get(name.as_str()).map(ToString::to_string);
        let folder = files.bundles.join(name);
        row.bundle = folder.exists().then_some(folder);
    }
    Ok((rows.into_values().collect(), running))
}

fn entry<'a>(rows: &'a mut BTreeMap<String, Row>, name: &str) -> &'a mut Row {
    rows.entry(name.to_owned()).or_insert_with(|| Row { name: name.to_owned(), ..Row::default() })
}

fn list(arguments: &SiteArguments, json: bool) -> Result<(), Failure> {
    let settings = site::load(arguments)?;
    let (rows, running) = rows(&settings)?;
    if json {
        say!("{}", serde_json::to_string_pretty(&rows).map_err(Failure::new)?);
        return Ok(());
    }
    if rows.is_empty() {
        say!("There is nobody yet. Add a client: lockgate client add device1");
        return Ok(());
    }
    let mut table = new_table(&["Name", "Has", "Expires", "Min", "Connected", "Since", "Last seen"]);
    for row in &rows {
        let expires = row
            .certificates
            .last()
            .map(|certificate| format!("{} ({} d)", certificate.expires, certificate.days_left))
            .unwrap_or_default();
        let connected: Vec<String> =
            row.connections.iter().map(|c| format!("{} from {}", c.level, c.address)).collect();
        let since: Vec<&str> = row.connections.iter().map(|c| c.since.as_str()).collect();
        let seen =
            row.last_seen.as_ref().map(|seen| format!("{} {}", short_time(seen.at), seen.level)).unwrap_or_default();
        table.add_row([
            row.name.clone(),
            row.has(),
            expires,
            row.min_level.clone().unwrap_or_default(),
            connected.join("\n"),
            since.join("\n"),
            seen,
        ]);
    }
    say!("{table}");
    if !running {
        say!("No broker is running: who is connected is not known.");
    }
    Ok(())
}

fn short_time(at: OffsetDateTime) -> String {
    format!("{} {:02}:{:02}Z", at.date(), at.hour(), at.minute())
}

impl Row {
    fn has(&self) -> String {
        let has: Vec<&str> = [(!self.certificates.is_empty(), "certificate"), (self.password, "password")]
            .into_iter()
            .filter_map(|(has, what)| has.then_some(what))
            .collect();
        has.join(", ")
    }
}

fn show(arguments: &SiteArguments, name: &Identity, json: bool) -> Result<(), Failure> {
    let settings = site::load(arguments)?;
    let (rows, running) = rows(&settings)?;
    let row = rows
        .into_iter()
        .find(|row| row.name == name.as_str())
        .ok_or_else(|| Failure::new(format!("there is no {name}: `lockgate client list` shows who there is")))?;
    if json {
        say!("{}", serde_json::to_string_pretty(&row).map_err(Failure::new)?);
        return Ok(());
    }
    say!("{name}");
    say!("  has:         {}", row.has());
    for certificate in &row.certificates {
        say!(
            "  certificate: expires {} (in {} days), serial {}",
            certificate.expires,
            certificate.days_left,
            certificate.serial
        );
        say!("               SHA-256 {}", certificate.fingerprint);
    }
    say!("  min level:   {}", row.min_level.as_deref().unwrap_or("plain"));
    if let Some(bundle) = &row.bundle {
        say!("  bundle:      {}/", bundle.display());
    }
    match (running, row.sessions.is_empty()) {
        (false, _) => say!("  sessions:    not known: no broker is running"),
        (true, true) => say!("  sessions:    none"),
        (true, false) => {}
    }
    for session in &row.sessions {
        let state = match &session.connection {
            Some(c) => {
                format!("connected at level {} from {} since {}, MQTT {}", c.level, c.address, c.since, c.version)
            }
            None => "not connected".to_owned(),
        };
        say!("  session:     {:?} {state}", session.client_id);
        say!(
            "               {} subscriptions, {} messages queued ({} bytes), {} in flight",
            session.subscriptions,
            session.queued_messages,
            session.queued_bytes,
            session.inflight_messages
        );
    }
    if let Some(seen) = &row.last_seen {
        say!("  last seen:   {} at level {} from {}", short_time(seen.at), seen.level, seen.from);
    }
    Ok(())
}
