//! A certificate authority that was made elsewhere, and what it issued, taken over.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Args;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::super::report::shell;
use super::super::site::{self, Files};
use super::super::{Failure, SiteArguments, ask, bundle};
use crate::config::{self, Settings, Template};
use crate::pki::{
    self, Authority, CertificateInfo, Entry, Event, FoundCertificate, FoundKey, Indexed, Kind, Lock, Owner, Reason,
    Survey, Transaction, certificate_pem, is_signed_by,
};
use crate::types::Identity;

#[derive(Args)]
#[command(
    after_help = "Examples:\n  lockgate ca import ~/easy-rsa/pki\n  lockgate ca import /etc/mosquitto/certs /etc/mosquitto/ca_certificates\n  lockgate ca import \"$(mkcert -CAROOT)\" broker.pem broker-key.pem\n\nThen `lockgate init` makes what is still missing: configuration, passwords, a server certificate.\nThe files are copied; where they were, nothing changes. A CA that others go on issuing with stays where it is:\nname it as `client-ca` of a listener."
)]
pub(super) struct Arguments {
    /// Files, and folders with all below them
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The CA's certificate, where there are several to choose from
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The server's certificate, where it cannot be told
    #[arg(long, value_name = "FILE")]
    server: Option<PathBuf>,
    /// Say what was found and what is wrong with it, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    site: SiteArguments,
}

pub(super) fn import(arguments: &Arguments) -> Result<(), Failure> {
    let (settings, exists) = destination(&arguments.site)?;
    let mut paths = arguments.paths.clone();
    paths.extend(arguments.ca.iter().chain(&arguments.server).cloned());
    let survey = ask::while_waiting("looking through the files", || Survey::of(&paths))?;
    let now = OffsetDateTime::now_utc();
    let plan = Plan::of(&survey, arguments.ca.as_deref(), arguments.server.as_deref(), now)?;
    plan.say(now);
    if !plan.findings.is_empty() {
        say!("To be mended:");
        plan.findings.iter().for_each(|what| say!("  - {what}"));
    }
    if arguments.dry_run {
        say!("Nothing was changed: this was a dry run.");
        return Ok(());
    }
    ask::while_waiting("writing", || plan.carry_out(&settings, now))?;
    say!("Taken over to {}/.", settings.pki.display());
    match exists {
        true => say!("Next: `lockgate serve --check` looks at the whole."),
        false => say!("Next: `lockgate init` makes the configuration and what else is missing."),
    }
    Ok(())
}

/// The site to import to, and whether it has a configuration; it has no CA yet.
fn destination(arguments: &SiteArguments) -> Result<(Settings, bool), Failure> {
    let (settings, exists) = match site::find_configuration(arguments) {
        Ok(_) => (site::load(arguments)?, true),
        Err(_) => {
            let folder = arguments.dir.clone().unwrap_or_default();
            let file = arguments.config.clone().unwrap_or_else(|| folder.join("config/lockgate.yaml"));
            let text = config::render(&Template {
                name: "lockgate".to_owned(),
                data: "../data".to_owned(),
                pki: "../pki".to_owned(),
                plain: None,
                tls_port: 8883,
                client_certs: config::ClientCerts::Optional,
                self_renew: false,
            });
            (config::parse(&file, &text, []).map_err(Failure::configuration)?, false)
        }
    };
    if settings.ca_certificate().exists() {
        return Err(Failure::new(format!(
            "{} exists: this site has a CA; import into a new folder with --dir, or trust the other CA's clients too: \
             name its certificate as `client-ca` of a TLS listener in {}",
            settings.ca_certificate().display(),
            settings.file.display()
        )));
    }
    Ok((settings, exists))
}

/// A certificate authority with what it issued.
pub(in crate::cli) struct Plan<'s> {
    pub(in crate::cli) ca: &'s FoundCertificate,
    /// PKCS #8, open or under its passphrase, with the place that it is from.
    pub(in crate::cli) ca_key: Option<(PathBuf, Zeroizing<String>)>,
    /// Who signed an issuing CA.
    root: Option<&'s FoundCertificate>,
    pub(in crate::cli) server: Option<(&'s FoundCertificate, &'s FoundKey)>,
    clients: Vec<Client<'s>>,
    /// Certificates of which only the books know.
    indexed: Vec<(&'s Indexed, Identity)>,
    revoked: Vec<(String, OffsetDateTime, Reason)>,
    /// What is wrong or left out, and what mends it.
    pub(in crate::cli) findings: Vec<String>,
}

struct Client<'s> {
    identity: Identity,
    found: &'s FoundCertificate,
    key: Option<&'s FoundKey>,
}

impl<'s> Plan<'s> {
    /// `ca`, `server`: the certificates' files, where somebody says which.
    pub(in crate::cli) fn of(
        survey: &'s Survey,
        ca: Option<&Path>,
        server: Option<&Path>,
        now: OffsetDateTime,
    ) -> Result<Plan<'s>, Failure> {
        let ca = find_ca(survey, ca)?;
        check_ca(survey, ca, now)?;
        let ca_key = find_ca_key(survey, ca)?;
        let mut plan = Plan {
            ca,
            ca_key,
            root: find_root(survey, ca),
            server: None,
            clients: Vec::new(),
            indexed: Vec::new(),
            revoked: Vec::new(),
            findings: Vec::new(),
        };
        match &plan.ca_key {
            Some((path, key)) if !pki::is_protected(key) => can_issue(ca, path, key, now)?,
            Some(_) => {}
            None => plan.find(
                &ca.path,
                "its key is not there: nothing can be issued or renewed; import it from where it is too",
            ),
        }
        let leaves: Vec<&FoundCertificate> = survey
            .certificates
            .iter()
            .filter(|found| found.info.fingerprint != ca.info.fingerprint)
            .filter(|found| plan.root.is_none_or(|root| root.info.fingerprint != found.info.fingerprint))
            .collect();
        plan.take_server(survey, &leaves, server, now)?;
        for found in leaves {
            if plan.server.is_none_or(|(server, _)| server.info.fingerprint != found.info.fingerprint) {
                plan.take_client(survey, found, now);
            }
        }
        plan.take_books(survey);
        plan.findings.extend(survey.unusable.iter().map(|(path, why)| format!("{}: {why}", path.display())));
        Ok(plan)
    }

    fn find(&mut self, path: &Path, what: impl AsRef<str>) {
        self.findings.push(format!("{}: {}", path.display(), what.as_ref()));
    }

    fn take_server(
        &mut self,
        survey: &'s Survey,
        leaves: &[&'s FoundCertificate],
        named: Option<&Path>,
        now: OffsetDateTime,
    ) -> Result<(), Failure> {
        let mut candidates: Vec<&FoundCertificate> = match named {
            Some(path) => leaves.iter().copied().filter(|found| found.path == path).collect(),
            None => leaves.iter().copied().filter(|found| looks_like_a_server(found)).collect(),
        };
        if let (Some(path), true) = (named, candidates.is_empty()) {
            return Err(Failure::new(format!("{}: there is no server certificate in it", path.display())));
        }
        // Of several for the same names the newest counts.
        candidates.sort_by_key(|found| std::cmp::Reverse(found.info.not_after));
        let names: BTreeSet<&str> = candidates.iter().map(|found| found.info.subject.as_str()).collect();
        if names.len() > 1 {
            let files: Vec<String> = candidates.iter().map(|found| found.path.display().to_string()).collect();
            return Err(Failure::new(format!(
                "several certificates may be the server's ({}): say which with --server FILE",
                files.join(", ")
            )));
        }
        let Some(found) = candidates.first().copied() else {
            self.findings.push("there is no server certificate: `lockgate init` makes one".to_owned());
            return Ok(());
        };
        let Some(key) = survey.key_of(&found.info) else {
            let near = survey.keys.iter().find(|key| key.path.file_stem() == found.path.file_stem());
            let what = near.map_or_else(
                || "its key is not there".to_owned(),
                |key| format!("the key {} does not belong to it", key.path.display()),
            );
            self.find(&found.path, format!("{what}: it is left out; `lockgate init` makes another"));
            return Ok(());
        };
        let info = &found.info;
        if info.not_after <= now {
            let what =
                format!("it expired on {}: it is left out; `lockgate init` makes another", info.not_after_date());
            self.find(&found.path, what);
            return Ok(());
        }
        let mend = "`lockgate server renew` makes a good one";
        if info.is_v1 {
            self.find(
                &found.path,
                format!("an X.509 v1 certificate, which modern clients refuse: it is served; {mend}"),
            );
        } else if info.names.is_empty() {
            self.find(&found.path, format!("it names no host (subjectAltName): modern clients refuse it; {mend}"));
        }
        if !info.for_server {
            self.find(&found.path, format!("its extended key usage is not a server's: clients refuse it; {mend}"));
        }
        self.find_common(found, mend);
        if !is_signed_by(&found.der, &self.ca.der) {
            let what = format!("{} issued it, not this CA: it is renewed where it comes from", info.issuer);
            self.find(&found.path, what);
        }
        self.server = Some((found, key));
        Ok(())
    }

    /// What is wrong with a certificate whatever it is for.
    fn find_common(&mut self, found: &FoundCertificate, mend: &str) {
        if found.info.subject == self.ca.info.subject {
            let what =
                format!("its subject is the CA's: clients may take it for self-signed (OpenSSL's error 18); {mend}");
            self.find(&found.path, what);
        }
        if let Some(weak) = found.info.weak_signature {
            self.find(&found.path, format!("it is signed with {weak}, which is refused everywhere; {mend}"));
        }
    }

    fn take_client(&mut self, survey: &'s Survey, found: &'s FoundCertificate, now: OffsetDateTime) {
        let info = &found.info;
        if info.is_ca || !is_signed_by(&found.der, &self.ca.der) {
            self.find(&found.path, format!("left out: {} issued {}, not this CA", info.issuer, info.subject));
            return;
        }
        if looks_like_a_server(found) && !info.for_client {
            self.find(&found.path, format!("left out: {} is another server's", info.subject));
            return;
        }
        let Some(name) = info.common_name.as_deref() else {
            let what = "left out: it has no common name, which would be its identity; `lockgate client add NAME` makes a good one";
            self.find(&found.path, what);
            return;
        };
        let Ok(identity) = Identity::parse(name) else {
            let what = format!(
                "left out: {name:?} is no identity's name (letters, digits, . _ -); `lockgate client add NAME` makes a good one"
            );
            self.find(&found.path, what);
            return;
        };
        if self.clients.iter().any(|other| other.found.info.serial == info.serial) || info.serial == self.ca.info.serial
        {
            let serial = info.serial_text();
            let what = format!(
                "left out: another certificate has its serial number, {serial}, by which it is revoked; `lockgate client add {identity}` makes a good one"
            );
            self.find(&found.path, what);
            return;
        }
        let key = survey.key_of(info);
        let mend = match key {
            Some(_) => format!("`lockgate client renew {identity}` makes a good one"),
            None => format!("`lockgate client sign {identity} CSR` makes a good one of its device's request"),
        };
        if info.is_v1 {
            self.find(
                &found.path,
                format!("an X.509 v1 certificate, which is refused: {identity} cannot come in; {mend}"),
            );
        }
        if !info.for_client {
            let what = format!("its extended key usage is not a client's: {identity} cannot come in; {mend}");
            self.find(&found.path, what);
        }
        if info.not_after <= now {
            self.find(&found.path, format!("it expired on {}; {mend}", info.not_after_date()));
        }
        self.find_common(found, &mend);
        self.clients.push(Client { identity, found, key });
    }

    /// What `openssl ca` wrote down, and what a list of this CA revokes.
    fn take_books(&mut self, survey: &'s Survey) {
        let known: BTreeSet<String> = survey.certificates.iter().map(|found| found.info.serial_text()).collect();
        let signed = survey.certificates.iter().filter(|found| is_signed_by(&found.der, &self.ca.der));
        let ours: BTreeSet<String> = signed.map(|found| found.info.serial_text()).collect();
        for book in &survey.books {
            // Another CA numbers as it likes: a line of its books says nothing of ours.
            if book.path.parent() != self.ca.path.parent() && !book.lines.iter().any(|line| ours.contains(&line.serial))
            {
                self.find(&book.path, "left out: nothing that this CA issued is in it");
                continue;
            }
            for line in &book.lines {
                if let Some((at, reason)) = line.revoked {
                    self.revoked.push((line.serial.clone(), at, reason));
                }
                if known.contains(&line.serial) {
                    continue;
                }
                let name = line.subject.rsplit_once("/CN=").map(|(_, rest)| rest.split('/').next().unwrap_or(rest));
                match name.map(Identity::parse) {
                    Some(Ok(identity)) => self.indexed.push((line, identity)),
                    _ => self.find(&book.path, format!("left out: {} is no identity's", line.subject)),
                }
            }
        }
        for (path, list) in &survey.lists {
            if !list.is_signed_by(&self.ca.der) {
                self.find(path, format!("left out: a revocation list of {}, not of this CA", list.issuer));
                continue;
            }
            let serials = list.serials.iter().map(|serial| serial.iter().map(|byte| format!("{byte:02x}")).collect());
            self.revoked.extend(serials.map(|serial| (serial, list.this_update, Reason::Unspecified)));
        }
    }

    pub(in crate::cli) fn say(&self, now: OffsetDateTime) {
        let info = &self.ca.info;
        say!("CA:      {} ({}), expires {}", info.subject, self.ca.path.display(), info.not_after_date());
        match &self.ca_key {
            Some((path, key)) => {
                let how = if pki::is_protected(key) { ", under its passphrase" } else { "" };
                say!("         with its key {}{how}", path.display());
            }
            None => say!("         without its key"),
        }
        if let Some(root) = self.root {
            say!("Root:    {} ({})", root.info.subject, root.path.display());
        }
        if let Some((server, key)) = self.server {
            let names: Vec<String> = server.info.names.iter().map(ToString::to_string).collect();
            let names = if names.is_empty() { server.info.subject.clone() } else { names.join(", ") };
            say!("Server:  {names} ({}, key {})", server.path.display(), key.path.display());
        }
        let gone: BTreeSet<&str> = self.revoked.iter().map(|(serial, _, _)| serial.as_str()).collect();
        for client in &self.clients {
            let info = &client.found.info;
            let state = match (gone.contains(info.serial_text().as_str()), info.not_after <= now) {
                (true, _) => "revoked".to_owned(),
                (false, true) => format!("expired {}", info.not_after_date()),
                (false, false) => format!("expires {}", info.not_after_date()),
            };
            let key = if client.key.is_some() { "with its key" } else { "its key is its device's" };
            say!("Client:  {}, {key}, {state} ({})", client.identity, client.found.path.display());
        }
        for (line, identity) in &self.indexed {
            let state = if line.revoked.is_some() { "revoked" } else { "good" };
            say!("Client:  {identity}, {state}, of which index.txt alone knows (serial {})", line.serial);
        }
        say!("Certificates of this CA that are not named above will admit nobody: import them too.");
    }

    fn carry_out(&self, settings: &Settings, now: OffsetDateTime) -> Result<(), Failure> {
        let files = Files::of(settings);
        std::fs::create_dir_all(&files.anchor)
            .map_err(|error| Failure::new(format!("cannot make {}: {error}", files.anchor.display())))?;
        let _lock = Lock::acquire(&files.anchor)?;
        files.recover()?;
        let owner = files.owner();
        let mut change = Transaction::new(&files.anchor);
        self.stage(&mut change, settings, owner, now)?;
        change.commit()?;
        Ok(())
    }

    /// Has `change` write the CA, the server's certificate, clients' bundles and the ledger.
    pub(in crate::cli) fn stage(
        &self,
        change: &mut Transaction,
        settings: &Settings,
        owner: Option<Owner>,
        now: OffsetDateTime,
    ) -> Result<(), Failure> {
        let files = Files::of(settings);
        change.folder(&settings.pki, 0o700, owner);
        let ca_pem = certificate_pem(&self.ca.der);
        change.write(&settings.ca_certificate(), ca_pem.as_str(), 0o644, owner);
        if let Some((_, key)) = &self.ca_key {
            change.write(&settings.ca_key(), key.as_str(), 0o600, site::ca_key_owner(settings, owner));
        }
        if let Some(root) = self.root {
            change.write(&settings.ca_root(), certificate_pem(&root.der), 0o644, owner);
        }
        let imported = |found: &FoundCertificate, kind, identity: Option<&Identity>, origin: &str| {
            let pem = certificate_pem(&found.der);
            let at = found.info.not_before.min(now);
            let entry = Entry { key_origin: origin.to_owned(), ..Entry::of(&found.info, &pem, kind, identity, at) };
            Ok::<_, Failure>(Event::Issued(entry))
        };
        let mut events = vec![imported(self.ca, Kind::Ca, None, "imported")?];
        if let Some((server, key)) = self.server {
            let tls = settings.tls_files().next();
            let (certificate, place) = tls.map_or_else(
                || (settings.pki.join("server.crt"), settings.pki.join("server.key")),
                |tls| (tls.certificate.clone(), tls.key.clone()),
            );
            let mut chain = certificate_pem(&server.der);
            for der in &server.chain {
                chain += &certificate_pem(der);
            }
            change.write(&certificate, chain, 0o644, owner);
            change.write(&place, opened(key)?.as_str(), 0o600, owner);
            events.push(imported(server, Kind::Server, None, "imported")?);
        }
        let trusted = match self.root {
            Some(root) => certificate_pem(&root.der),
            None => ca_pem,
        };
        let mut newest: Vec<&Client<'_>> = self.clients.iter().collect();
        // The last one written stands: the newest with a key, else the newest.
        newest.sort_by_key(|client| (client.key.is_some(), client.found.info.not_after));
        let gone: BTreeSet<&str> = self.revoked.iter().map(|(serial, _, _)| serial.as_str()).collect();
        for client in newest {
            let origin = if client.key.is_some() { "imported" } else { "request" };
            events.push(imported(client.found, Kind::Client, Some(&client.identity), origin)?);
            if gone.contains(client.found.info.serial_text().as_str()) {
                continue;
            }
            let folder = files.bundles.join(client.identity.as_str());
            change.folder(&files.bundles, 0o700, owner);
            change.folder(&folder, 0o700, owner);
            change.write(&folder.join("ca.crt"), trusted.as_str(), 0o644, owner);
            change.write(&folder.join("client.crt"), certificate_pem(&client.found.der), 0o644, owner);
            if let Some(key) = client.key {
                change.write(&folder.join("client.key"), opened(key)?.as_str(), 0o600, owner);
            }
        }
        for (line, identity) in &self.indexed {
            events.push(Event::Issued(indexed_entry(line, identity, &self.ca.info, now)));
        }
        let revoked = self.revoked.iter().cloned();
        events.extend(revoked.map(|(serial, at, reason)| Event::Revoked { at, serial, reason }));
        files.record(change, &events, owner)?;
        Ok(())
    }
}

/// A certificate that nobody has here, by its line in the books.
fn indexed_entry(line: &Indexed, identity: &Identity, ca: &CertificateInfo, now: OffsetDateTime) -> Entry {
    Entry {
        at: now.replace_nanosecond(0).unwrap_or(now),
        kind: Kind::Client,
        serial: line.serial.clone(),
        subject: line.subject.clone(),
        issuer: Some(ca.subject.clone()),
        names: Vec::new(),
        identity: Some(identity.to_string()),
        key: "unknown".to_owned(),
        key_origin: "imported".to_owned(),
        expires: line.expires,
        fingerprint: String::new(),
        renews: None,
        certificate: String::new(),
    }
}

/// The one that is named; or whose key is there; or the only one.
fn find_ca<'s>(survey: &'s Survey, named: Option<&Path>) -> Result<&'s FoundCertificate, Failure> {
    if let Some(path) = named {
        let found = survey.certificates.iter().find(|found| found.path == path);
        return found.ok_or_else(|| Failure::new(format!("{}: there is no certificate in it", path.display())));
    }
    let self_signed = |info: &CertificateInfo| info.is_v1 && info.subject == info.issuer;
    let all: Vec<&FoundCertificate> =
        survey.certificates.iter().filter(|found| found.info.is_ca || self_signed(&found.info)).collect();
    let with_key: Vec<&FoundCertificate> =
        all.iter().copied().filter(|found| survey.key_of(&found.info).is_some()).collect();
    match (with_key.as_slice(), all.as_slice()) {
        ([one], _) | ([], [one]) => Ok(one),
        ([], []) => Err(Failure::new(
            "there is no CA's certificate here: one that is self-signed, or has CA:TRUE in its basic constraints",
        )),
        _ => {
            let files: Vec<String> = all.iter().map(|found| found.path.display().to_string()).collect();
            Err(Failure::new(format!("there are several CAs ({}): say which with --ca FILE", files.join(", "))))
        }
    }
}

fn check_ca(survey: &Survey, ca: &FoundCertificate, now: OffsetDateTime) -> Result<(), Failure> {
    let (info, place) = (&ca.info, ca.path.display());
    if !info.is_ca {
        let key = survey.key_of(info).map_or_else(|| PathBuf::from("CA.KEY"), |key| key.path.clone());
        let version = if info.is_v1 { "an X.509 v1 certificate" } else { "no CA's certificate" };
        let new = PathBuf::from(format!("{place}.v3"));
        let subject = pki::openssl_subject(&ca.der).unwrap_or_else(|| "SUBJECT".to_owned());
        return Err(Failure::new(format!(
            "{place}: {version}, without CA:TRUE: nobody who is strict accepts what it signs. This makes one of the same \
             name, number and key, under which all that was issued stays good; import that:\n  \
             openssl req -x509 -new -days 3650 -set_serial 0x{} -subj {} -key {} -out {} -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign",
            info.serial_text(),
            shell(Path::new(&subject)),
            shell(&key),
            shell(&new),
        )));
    }
    if info.not_after <= now {
        return Err(Failure::new(format!(
            "{place}: the CA expired on {}: make a new one with `lockgate init`",
            info.not_after_date()
        )));
    }
    if info.key.strip_prefix("rsa-").and_then(|bits| bits.parse().ok()).is_some_and(|bits: u32| bits < 2048) {
        return Err(Failure::new(format!(
            "{place}: its key is {}, which nobody accepts any more: make a new CA with `lockgate init`",
            info.key
        )));
    }
    Ok(())
}

/// PKCS #8; one under a passphrase is opened to see whether it belongs to the CA, and stays under it.
fn find_ca_key(survey: &Survey, ca: &FoundCertificate) -> Result<Option<(PathBuf, Zeroizing<String>)>, Failure> {
    if let Some(key) = survey.key_of(&ca.info) {
        return Ok(Some((key.path.clone(), opened(key)?)));
    }
    let sealed: Vec<&FoundKey> = survey.keys.iter().filter(|key| key.public_key.is_none()).collect();
    let file = std::env::var_os(bundle::PASSPHRASE_FILE).map(PathBuf::from);
    let mut closed = None;
    for key in sealed {
        // Others' passphrases are nobody's business here.
        let beside = key.path.parent() == ca.path.parent() || survey.keys.len() == 1;
        let named = key.path.file_name().is_some_and(|name| name.to_string_lossy().to_ascii_lowercase().contains("ca"));
        if beside || named {
            let opened = bundle::open_secret(&key.pem, &key.path, file.as_deref());
            let loaded = opened.and_then(|secret| pki::load_key(secret.key_pem.as_bytes()).map_err(Failure::new));
            match loaded {
                Ok(loaded) if pki::key_matches(&loaded, &ca.info).unwrap_or(false) => {
                    return Ok(Some((key.path.clone(), key.pem.clone())));
                }
                Ok(_) => {}
                // It may be somebody else's, under a passphrase of its own.
                Err(failure) => closed = closed.or(Some(failure)),
            }
        }
    }
    closed.map_or(Ok(None), Err)
}

/// Who signed it, up to where somebody signed themselves.
fn find_root<'s>(survey: &'s Survey, ca: &FoundCertificate) -> Option<&'s FoundCertificate> {
    if ca.info.subject == ca.info.issuer {
        return None;
    }
    survey
        .certificates
        .iter()
        .find(|found| found.info.is_ca && found.info.subject == ca.info.issuer && is_signed_by(&ca.der, &found.der))
}

/// What is read here of its name has to come out as it is there: some forms of old cannot be written.
fn can_issue(ca: &FoundCertificate, path: &Path, key: &str, now: OffsetDateTime) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::new(format!("{}: {error}", path.display()));
    let authority = Authority::of(&ca.der, &certificate_pem(&ca.der), key).map_err(|error| failed(&error))?;
    let name: Identity = "try".parse().expect("a good name");
    let tried =
        authority.issue_client("try", &name, pki::KeyType::EcdsaP256, 1, now).map_err(|error| failed(&error))?;
    let ders = pki::load_certificates(tried.certificate_pem.as_bytes()).map_err(|error| failed(&error))?;
    match is_signed_by(&ders[0], &ca.der) && pki::same_name(&ders[0], &ca.der) {
        true => Ok(()),
        false => Err(failed(
            &"the CA's name is written in a way that cannot be repeated here: make a new CA with `lockgate init`",
        )),
    }
}

fn looks_like_a_server(found: &FoundCertificate) -> bool {
    let info = &found.info;
    if info.is_ca || !info.for_server {
        return false;
    }
    let host =
        |name: &str| name == "localhost" || name.parse::<std::net::IpAddr>().is_ok() || name == pki::host_names().host;
    let file = found.path.file_stem().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let called = ["server", "broker", "mosquitto", "mqtt"].iter().any(|word| file.contains(word));
    !info.names.is_empty() && !file.contains("client")
        || !info.for_client
        || called
        || info.common_name.as_deref().is_some_and(host)
}

fn opened(key: &FoundKey) -> Result<Zeroizing<String>, Failure> {
    pki::to_pkcs8(&key.pem).map_err(|error| Failure::new(format!("{}: {error}", key.path.display())))
}
