//! `lockgate import mosquitto`: an installation of Mosquitto becomes a site.

mod yaml;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use time::OffsetDateTime;

use super::ca::import::Plan;
use super::site::{self, Files};
use super::{Failure, ask, init, make, report};
use crate::auth::{self, Acl, DirectoryError};
use crate::config::mosquitto::{self, CommandLine};
use crate::config::{self, ClientCerts, Listener, LogDestination, Settings, TlsFiles, TlsVersion, Transport};
use crate::pki::{self, CertificateInfo, FileError, Lock, Survey, Transaction, is_signed_by};
use crate::types::Identity;

#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring a Mosquitto over: configuration, passwords, ACL, certificates and CA
    #[command(
        after_help = "Examples:\n  lockgate import mosquitto /etc/mosquitto --dry-run\n  lockgate import mosquitto /etc/mosquitto ~/my-ca --dir broker\n\nThe files are copied; where they were, nothing changes, and Mosquitto goes on with them. To serve its configuration\nas it is: `lockgate mosquitto -c /etc/mosquitto/mosquitto.conf`."
    )]
    Mosquitto(Mosquitto),
}

#[derive(Args)]
struct Mosquitto {
    /// The folder with mosquitto.conf, or that file; then more folders with certificates and keys, the CA's among them
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Say what would be made and what is weak, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// The site's folder
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    dir: PathBuf,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Command::Mosquitto(arguments) = arguments.command;
    import(&arguments)
}

fn import(arguments: &Mosquitto) -> Result<(), Failure> {
    let now = OffsetDateTime::now_utc();
    let file = configuration_of(&arguments.paths[0])?;
    let command = CommandLine { file: Some(file.clone()), lenient: true, ..CommandLine::default() };
    let mut read = mosquitto::load(&command).map_err(|wrong| Failure::configuration(&wrong))?;
    leave_behind(&mut read);
    if read.settings.listeners.is_empty() {
        return Err(Failure::configuration(format!(
            "{}: its only listener is of protocol http_api, which a site of our own has not: nothing is left to bring over",
            file.display()
        )));
    }
    let theirs = read.settings;
    let destination = arguments.dir.join("config/lockgate.yaml");
    if !arguments.dry_run {
        finish_interrupted(&destination)?;
    }
    if destination.exists() {
        return Err(Failure::new(format!(
            "{} exists: this site has a configuration; import into a new folder with --dir",
            destination.display()
        )));
    }
    let survey = ask::while_waiting("looking through the files", || survey(&arguments.paths, &theirs))?;
    let mut findings = Findings::default();
    let mut plan = plan(&survey, &theirs, now, &mut findings)?;
    if let Some(plan) = &mut plan
        && own_certificate(&survey, &theirs, Some(plan)).is_none()
    {
        // Somebody else renews it, where it is.
        plan.server = None;
    }
    let mut import = Import { theirs: &theirs, survey: &survey, plan: plan.as_ref(), files: Vec::new(), findings };
    let passwords = import.passwords()?;
    let acls = import.acls()?;
    import.look(&file, read.local_only);
    let places = Places {
        passwords: passwords.0,
        acls: acls.0,
        ca: import.plan.map(|plan| plan.ca.der.to_vec()),
        own: own_certificate(&survey, &theirs, import.plan).map(Path::to_owned),
    };
    let text = yaml::render(&theirs, &file, &places, read.local_only);
    let settings = config::parse(&destination, &text, [])
        .map_err(|error| Failure::new(format!("what comes of {} is no configuration: {error}", file.display())))?;
    say!("{} becomes {}:", file.display(), destination.display());
    for listener in &settings.listeners {
        let report = report::listener_report(listener);
        say!("  {}: {}, open to {}, with {}", report.address, report.transport, report.open_to, report.demands);
    }
    if let Some(plan) = &plan {
        plan.say(now);
    }
    let Import { files, findings, .. } = import;
    for (path, content, _) in &files {
        say!("Copied:  {} ({} lines)", path.display(), content.lines().count());
    }
    findings.say(read.notices);
    if arguments.dry_run {
        say!("Nothing was changed: this was a dry run.");
        return Ok(());
    }
    let site = Files::of(&settings);
    std::fs::create_dir_all(&site.anchor)
        .map_err(|error| Failure::new(format!("cannot make {}: {error}", site.anchor.display())))?;
    init::restrict(&site.anchor, None)?;
    let _lock = Lock::acquire(&site.anchor)?;
    site.recover()?;
    let named = [&settings.passwords, &settings.acl, &settings.identities].into_iter().flatten().cloned();
    let ours = [destination.clone(), settings.ca_certificate(), settings.ca_key(), settings.ledger()];
    let copied = files.iter().map(|(name, _, _)| site.anchor.join(name));
    if let Some(known) = ours.into_iter().chain(named).chain(copied).find(|path| path.exists()) {
        return Err(Failure::new(format!(
            "{} exists, and would be lost: import into a new folder with --dir; nothing was changed",
            known.display()
        )));
    }
    let owner = site.owner();
    let mut change = Transaction::new(&site.anchor);
    for folder in [&site.anchor, &settings.pki, &settings.data] {
        change.folder(folder, 0o700, owner);
    }
    make::keep_out_of_git(&mut change, &site.anchor, [&settings.pki, &settings.data], owner);
    change.write(&destination, text, 0o600, owner);
    let has_passwords = files.iter().any(|(name, _, _)| name == Path::new("passwd"));
    for (path, content, mode) in files {
        change.write(&site.anchor.join(path), content, mode, owner);
    }
    if let Some(passwords) = settings.passwords.as_ref().filter(|_| !has_passwords) {
        change.write(passwords, make::PASSWORDS_HEADER.to_owned(), 0o600, owner);
    }
    if let Some(identities) = &settings.identities {
        change.write(identities, site::IDENTITIES_HEADER.to_owned(), 0o600, owner);
    }
    if let Some(plan) = &plan {
        plan.stage(&mut change, &settings, owner, now)?;
    }
    ask::while_waiting("writing", || change.commit())?;
    say!("Next:");
    let made = settings.ca_certificate().exists() && settings.tls_files().all(|tls| tls.certificate.exists());
    if !made {
        say!(
            "  lockgate init --dir {0}              # a CA and certificates, where there are none yet",
            arguments.dir.display()
        );
    }
    say!(
        "  lockgate serve --check --dir {}     # looks at the whole, while Mosquitto still runs",
        arguments.dir.display()
    );
    say!("  systemctl stop mosquitto; lockgate serve --dir {}", arguments.dir.display());
    Ok(())
}

/// What a site of our own does in other ways.
fn leave_behind(read: &mut mosquitto::Read) {
    let mosquitto::Read { settings, notices, .. } = read;
    for listener in &mut settings.listeners {
        if let Some(pages) = listener.pages.take_if(|pages| !pages.api) {
            let folder = pages.folder.unwrap_or_default();
            notices.push(format!(
                "http_dir {} stays behind: a site of our own serves no files; a web server does",
                folder.display()
            ));
        }
    }
    settings.listeners.retain(|listener| match &listener.pages {
        Some(_) => {
            notices.push(format!(
                "the listener of protocol http_api on {} stays behind: `lockgate status --json` and `metrics.address` tell more",
                listener.address
            ));
            false
        }
        None => true,
    });
    if settings.control_api {
        notices
            .push("enable_control_api stays behind: `lockgate status` and `lockgate client list` say more".to_owned());
    }
}

/// An import that was killed is whole, or undone, before the next one looks at it.
fn finish_interrupted(destination: &Path) -> Result<(), Failure> {
    let settings = config::parse(destination, "name: mosquitto\n", []).map_err(Failure::configuration)?;
    let site = Files::of(&settings);
    if pki::is_half_made(&site.anchor) {
        let _lock = Lock::acquire(&site.anchor)?;
        site.recover()?;
    }
    Ok(())
}

/// A folder's mosquitto.conf, or the file itself.
fn configuration_of(path: &Path) -> Result<PathBuf, Failure> {
    let file = if path.is_dir() { path.join("mosquitto.conf") } else { path.to_owned() };
    match file.is_file() {
        true => Ok(file),
        false => Err(Failure::new(format!(
            "{}: there is no such file; name mosquitto.conf, or the folder with it",
            file.display()
        ))),
    }
}

/// Certificates and keys in the folders that were named, and those that the configuration names.
fn survey(paths: &[PathBuf], theirs: &Settings) -> Result<Survey, Failure> {
    let folders: Vec<PathBuf> = paths.iter().filter(|path| path.is_dir()).cloned().collect();
    let known: Vec<PathBuf> = folders.iter().filter_map(|folder| std::path::absolute(folder).ok()).collect();
    let named = theirs.tls_files().flat_map(|tls| {
        [&tls.certificate, &tls.key, &tls.client_ca].into_iter().chain(&tls.client_ca_folder).chain(&tls.client_crl)
    });
    // Keys that lie beside a CA that is named.
    let beside = theirs.tls_files().filter_map(|tls| std::fs::read_dir(tls.client_ca.parent()?).ok());
    let keys = beside
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "key"));
    let mut all = folders;
    for path in named.filter(|path| path.exists()).cloned().chain(keys) {
        let path = std::path::absolute(&path).unwrap_or(path);
        if !known.iter().any(|folder| path.starts_with(folder)) && !all.contains(&path) {
            all.push(path);
        }
    }
    Ok(Survey::of(&all)?)
}

/// The CA with what it issued, if its key is here: then this site issues in its place. Otherwise it stays
/// somebody else's, whose clients are let in as before.
fn plan<'s>(
    survey: &'s Survey,
    theirs: &Settings,
    now: OffsetDateTime,
    findings: &mut Findings,
) -> Result<Option<Plan<'s>>, Failure> {
    let mut tls = theirs.tls_files();
    let Some(first) = tls.next() else { return Ok(None) };
    // By what is in it: of copies the survey has the first.
    let of_file = |path: &Path| match certificates_in(path).as_slice() {
        [der, ..] => survey.certificates.iter().find(|found| found.der == *der),
        [] => None,
    };
    let trusts = |tls: &&TlsFiles| tls.client_certs != ClientCerts::Off;
    let named = theirs.tls_files().find(trusts).unwrap_or(first);
    let server = of_file(&first.certificate);
    // The CA that signs clients; without those, whoever signed the server's certificate.
    let ca = match named.client_certs {
        ClientCerts::Off => {
            let signs =
                |found: &&pki::FoundCertificate| server.is_some_and(|server| is_signed_by(&server.der, &found.der));
            survey.certificates.iter().find(|found| found.info.is_ca && signs(found))
        }
        // Several stay as they are.
        _ => of_file(&named.client_ca).filter(|found| trusts_alone(named, &found.der)),
    };
    let Some(ca) = ca else { return Ok(None) };
    let sealed = survey.keys.iter().any(|key| key.public_key.is_none());
    if survey.key_of(&ca.info).is_none() && !sealed {
        findings.note(format!(
            "{}: the CA's key is not here: its clients come in as before, and it issues and revokes where its key is; name that folder too, and this site becomes the CA",
            ca.path.display()
        ));
        return Ok(None);
    }
    match Plan::of(survey, Some(&ca.path), server.map(|server| &*server.path), now) {
        Ok(plan) if plan.ca_key.is_some() => Ok(Some(plan)),
        Ok(_) => Ok(None),
        // A CA that nobody would believe: with it as it is the rest goes on as before.
        Err(failure) => {
            findings.weak(failure.message);
            Ok(None)
        }
    }
}

/// The first TLS listener's certificate, if the CA that is taken over issued it: this site makes the next one.
fn own_certificate<'t>(survey: &Survey, theirs: &'t Settings, plan: Option<&Plan<'_>>) -> Option<&'t Path> {
    let path = &theirs.tls_files().next()?.certificate;
    let found = survey.certificates.iter().find(|found| same_file(&found.path, path))?;
    is_signed_by(&found.der, &plan?.ca.der).then_some(path)
}

/// The certificates in a file; none where it is none.
fn certificates_in(path: &Path) -> Vec<rustls_pki_types::CertificateDer<'static>> {
    let bytes = std::fs::read(path).unwrap_or_default();
    pki::load_certificates(&bytes).unwrap_or_default()
}

/// Whether a listener takes the clients of that CA, and of no other.
fn trusts_alone(tls: &TlsFiles, ca: &[u8]) -> bool {
    let trusted = certificates_in(&tls.client_ca);
    tls.client_ca_folder.is_none() && trusted.len() == 1 && *trusted[0] == *ca
}

/// Whether both name one file, each in its way.
fn same_file(one: &Path, other: &Path) -> bool {
    one == other || one.canonicalize().ok().zip(other.canonicalize().ok()).is_some_and(|(one, other)| one == other)
}

/// Where things lie in the new site, for the configuration.
struct Places {
    /// The password files of before, and their names now.
    passwords: Vec<(PathBuf, String)>,
    acls: Vec<(PathBuf, String)>,
    /// The CA that this site takes over, DER.
    ca: Option<Vec<u8>>,
    /// The server's certificate that is in the site's own folder from now on.
    own: Option<PathBuf>,
}

impl Places {
    /// Whether a listener's clients are those of the CA that is taken over.
    fn takes_own(&self, tls: &TlsFiles) -> bool {
        self.ca.as_ref().is_some_and(|ca| trusts_alone(tls, ca))
    }

    fn name<'n>(names: &'n [(PathBuf, String)], path: Option<&PathBuf>) -> &'n str {
        let known = path.and_then(|path| names.iter().find(|(known, _)| known == path));
        known.map_or("none", |(_, name)| name)
    }
}

/// Files that are copied: what they were called, their names in the site's `config` folder.
struct Copies(Vec<(PathBuf, String)>);

impl Copies {
    /// The first is called `name`, the others are numbered.
    fn of<'p>(paths: impl Iterator<Item = &'p PathBuf>, name: &str) -> Copies {
        let mut seen = BTreeSet::new();
        let distinct = paths.filter(|path| seen.insert((*path).clone()));
        let named = distinct.enumerate().map(|(at, path)| {
            let name = if at == 0 { name.to_owned() } else { format!("{name}-{}", at + 1) };
            (path.clone(), name)
        });
        Copies(named.collect())
    }
}

/// An installation, and what is made of it.
struct Import<'a> {
    theirs: &'a Settings,
    survey: &'a Survey,
    plan: Option<&'a Plan<'a>>,
    /// Names in the site's `config` folder, contents and modes.
    files: Vec<(PathBuf, String, u32)>,
    findings: Findings,
}

impl Import<'_> {
    /// Copies what can be read of the password files; names and hashes that cannot be here are said.
    fn passwords(&mut self) -> Result<Copies, Failure> {
        let copies = Copies::of(self.theirs.password_files(), "passwd");
        for (path, name) in &copies.0 {
            let mut kept = String::new();
            for (at, line) in read(path)?.lines().enumerate() {
                let place = format!("{}:{}", path.display(), at + 1);
                let content = line.trim();
                if content.is_empty() || content.starts_with('#') {
                    kept += &format!("{line}\n");
                    continue;
                }
                let user = content.split(':').next().unwrap_or_default();
                match (Identity::parse(user), auth::parse_passwords(content)) {
                    (Ok(_), Ok(_)) => kept += &format!("{content}\n"),
                    (Err(error), _) => self.findings.left(format!(
                        "{place}: {user:?} cannot be a name here ({error}): `lockgate client add` makes one that can"
                    )),
                    (Ok(user), Err(errors)) => {
                        let why = match &errors[0] {
                            DirectoryError::Hash { error, .. } => error.to_string(),
                            other => other.to_string(),
                        };
                        self.findings
                            .left(format!("{place}: {user}: {why}: `lockgate client add {user}` makes it anew"));
                    }
                }
            }
            // One that is there twice counts as Mosquitto has it: by its last line.
            let kept = last_of_each(&kept);
            let lines = auth::parse_passwords(&kept)
                .map_err(|errors| Failure::new(format!("{}: {}", path.display(), errors[0])))?;
            let weak = lines.iter().filter(|line| line.hash.is_weak()).count();
            if weak > 0 {
                self.findings.weak(format!(
                    "{}: {weak} password(s) have hashes that are quick to guess at: `rehash: true` makes better ones when their owners log in",
                    path.display()
                ));
            }
            self.files.push((PathBuf::from(name), kept, 0o600));
        }
        Ok(copies)
    }

    /// Copies the ACL files as they are: a line that is left out could open a door.
    fn acls(&mut self) -> Result<Copies, Failure> {
        let copies = Copies::of(self.theirs.acl_files(), "acl");
        for (path, name) in &copies.0 {
            let text = read(path)?;
            Acl::parse(&text).map_err(|errors| {
                let lines: Vec<String> = errors.iter().map(|error| format!("{}: {error}", path.display())).collect();
                Failure::configuration(format!(
                    "{}\nmend that, then import again: nothing was changed",
                    lines.join("\n")
                ))
            })?;
            self.files.push((PathBuf::from(name), text, 0o600));
        }
        Ok(copies)
    }

    /// What is weak or stays behind.
    fn look(&mut self, file: &Path, local_only: bool) {
        let (theirs, findings) = (self.theirs, &mut self.findings);
        for listener in &theirs.listeners {
            look_at(listener, local_only, findings);
        }
        if theirs.acl_files().next().is_none() {
            findings.weak(format!(
                "{}: there is no ACL: everybody may read and write every topic; `acl: acl` in the new configuration names one",
                file.display()
            ));
        }
        for path in theirs.password_files().chain(theirs.tls_files().map(|tls| &tls.key)) {
            if let Err(error @ FileError::Loose { .. }) = pki::check_secret(path) {
                findings.weak(error.to_string());
            }
        }
        left_out(theirs, findings);
        let ours = self.plan.map(|plan| plan.findings.clone()).unwrap_or_default();
        ours.into_iter().for_each(|what| findings.weak(what));
        if self.plan.is_none() {
            for found in self.survey.certificates.iter().filter(|found| found.info.is_v1 && !found.info.is_ca) {
                let is_server = theirs.tls_files().any(|tls| same_file(&tls.certificate, &found.path));
                if !is_server && theirs.tls_files().any(|tls| tls.client_certs != ClientCerts::Off) {
                    findings.weak(format!(
                        "{}: an X.509 v1 certificate, which a site refuses and `lockgate mosquitto` takes: have its CA make one with extensions (`-extfile`)",
                        found.path.display()
                    ));
                }
            }
            let certificates: BTreeSet<&PathBuf> = theirs.tls_files().map(|tls| &tls.certificate).collect();
            certificates.into_iter().for_each(|path| look_at_certificate(path, findings));
        }
        let kept = theirs.data.parent().map(|folder| folder.join("mosquitto.db")).filter(|kept| kept.exists());
        if let Some(kept) = kept {
            findings.left(format!(
                "{}: sessions and retained messages are not read: clients subscribe anew, and what is retained has to be published anew",
                kept.display()
            ));
        }
    }
}

/// What the configuration says and the new one cannot.
fn left_out(theirs: &Settings, findings: &mut Findings) {
    for listener in &theirs.listeners {
        let address = &listener.address;
        if listener.rules.unchecked && listener.rules.allow_anonymous {
            findings.left(format!(
                "listener {address}: without a password_file Mosquitto believes user names; here a client that sends one needs its password: `lockgate client add NAME`, or take the name off it"
            ));
        }
        let usual = (listener.entrance.topic_alias_max, listener.entrance.client_topic_alias_max) == (10, 10);
        if !usual {
            findings
                .left(format!("listener {address}: max_topic_alias: `limits.topic-alias-max` is for all listeners"));
        }
        let Transport::Tls(tls) = &listener.transport else { continue };
        if !tls.cipher_suites.is_empty() {
            findings.left(format!("listener {address}: ciphers: all that are offered have forward secrecy and AEAD"));
        }
        if tls.client_ca_folder.is_some() {
            findings.left(format!(
                "listener {address}: capath beside cafile: put all CAs into one file, and name it as `client-ca`"
            ));
        }
        if tls.client_crl.is_some() {
            findings.note(format!(
                "listener {address}: a revocation list that is out of date, or missing for a CA, is obeyed and spoken of here; Mosquitto lets nobody in then"
            ));
        }
    }
    let newer = |tls: &TlsFiles| tls.min_version == TlsVersion::V13;
    if theirs.tls_files().any(newer) && !theirs.tls_files().all(newer) {
        findings.note(
            "tls_version tlsv1.3 of one listener is the least for all: clients of the others need TLS 1.3 too"
                .to_owned(),
        );
    }
    for destination in &theirs.log.destinations {
        if let LogDestination::File(path) = destination {
            findings.left(format!(
                "log_dest file {}: that stays Mosquitto's; lines go to standard error, or to the file that `log.to` names",
                path.display()
            ));
        }
    }
    if let Some(user) = &theirs.user {
        findings.note(format!(
            "started by root the broker stays root: `user: {user}` in the new configuration has it become {user}, to whom the site then has to belong (`chown -R {user} DIR`)"
        ));
    }
    if let Some(path) = &theirs.pid_file {
        findings.left(format!("pid_file {}: `lockgate status` and systemd know the pid", path.display()));
    }
}

fn look_at(listener: &Listener, local_only: bool, findings: &mut Findings) {
    let address = &listener.address;
    if listener.rules.allow_anonymous && !local_only {
        findings.weak(format!(
            "listener {address}: anybody may come in without a name: `lockgate client add NAME` for each, then `allow-anonymous: false`"
        ));
    }
    if address.is_remote() && listener.transport == Transport::Tcp {
        findings.weak(format!(
            "listener {address}: passwords and messages can be read on the wire: move clients to TLS (`lockgate client env NAME --level tls`), then `address: loopback`"
        ));
    }
}

/// A certificate of somebody else's CA that goes on being served.
fn look_at_certificate(path: &Path, findings: &mut Findings) {
    let Ok(info) = CertificateInfo::read(path) else { return };
    let place = path.display();
    let mend = "have its CA make one with this host's names (subjectAltName)";
    if info.is_v1 {
        findings.weak(format!("{place}: an X.509 v1 certificate, which modern clients refuse: {mend}"));
    } else if info.names.is_empty() {
        findings.weak(format!("{place}: it names no host: modern clients refuse it; {mend}"));
    }
    if info.not_after <= OffsetDateTime::now_utc() {
        findings.weak(format!("{place}: it expired on {}: {mend}", info.not_after_date()));
    }
    if info.subject == info.issuer && !info.is_ca {
        findings.weak(format!(
            "{place}: it is signed by itself: clients have to be told to trust just it; `lockgate init` makes a CA"
        ));
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    let bytes =
        std::fs::read(path).map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())))?;
    String::from_utf8(bytes).map_err(|_| Failure::new(format!("{}: it is not UTF-8 text", path.display())))
}

/// The lines of a password file without those that a later one replaces.
fn last_of_each(text: &str) -> String {
    let mut seen = BTreeSet::new();
    let mut kept: Vec<&str> = Vec::new();
    for line in text.lines().rev() {
        let name = line.split(':').next().unwrap_or_default();
        if line.trim().is_empty() || line.starts_with('#') || seen.insert(name) {
            kept.push(line);
        }
    }
    kept.into_iter().rev().map(|line| format!("{line}\n")).collect()
}

/// What there is to say.
#[derive(Default)]
struct Findings {
    weak: Vec<String>,
    left: Vec<String>,
    notes: Vec<String>,
}

impl Findings {
    fn weak(&mut self, what: String) {
        self.weak.push(what);
    }

    fn left(&mut self, what: String) {
        self.left.push(what);
    }

    fn note(&mut self, what: String) {
        self.notes.push(what);
    }

    fn say(self, notices: Vec<String>) {
        let part = |title: &str, lines: Vec<String>| {
            if !lines.is_empty() {
                say!("{title}");
                lines.iter().for_each(|line| say!("  - {line}"));
            }
        };
        part("Weak, and what mends it:", self.weak);
        part("Left behind:", self.left);
        part("To know:", self.notes.into_iter().chain(notices).collect());
    }
}
