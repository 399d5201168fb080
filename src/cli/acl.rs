//! `lockgate acl test`: what the ACL says, and the line that decided.

use clap::{Args, Subcommand, ValueEnum};

use super::{Failure, SiteArguments, site};
use crate::auth::{Acl, Operation, Subject};
use crate::types::{Realm, Topic};

#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// May NAME read or write TOPIC? Exit code 0 for yes, 1 for no
    #[command(after_help = "Example:\n  lockgate acl test device1 write device1/temperature")]
    Test {
        /// The identity; `-` for an anonymous client
        name: String,
        operation: Asked,
        /// One topic, without wildcards
        topic: String,
        /// The client id, for patterns with %c [default: the identity's name]
        #[arg(long, value_name = "ID")]
        client_id: Option<String>,
        #[command(flatten)]
        site: SiteArguments,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Asked {
    Read,
    Write,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Command::Test { name, operation, topic, client_id, site } = arguments.command;
    let settings = site::load(&site)?;
    let parsed = Topic::parse(&topic)
        .map_err(|error| Failure::configuration(format!("{topic:?}: {error}; name one topic, such as a/b")))?;
    let (acl, text, place) = match &settings.acl {
        None => (Acl::open(), String::new(), "no ACL".to_owned()),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())))?;
            let acl = Acl::parse(&text).map_err(|errors| {
                let lines: Vec<String> = errors.iter().map(|error| format!("{}: {error}", path.display())).collect();
                Failure::new(lines.join("\n"))
            })?;
            (acl, text, path.display().to_string())
        }
    };
    let identity = (name != "-").then_some(name.as_str());
    let subject = Subject { identity, client_id: client_id.as_deref().or(identity).unwrap_or("-"), realm: Realm::SITE };
    let (operation, verb) = match operation {
        Asked::Read => (Operation::Read, "read"),
        Asked::Write => (Operation::Write, "write"),
    };
    let decision = acl.check(subject, operation, parsed);
    let why = match decision.line.filter(|_| settings.acl.is_some()) {
        Some(line) => format!("{place}:{line}: {}", text.lines().nth(line as usize - 1).unwrap_or_default().trim()),
        None if settings.acl.is_none() => "there is no ACL (`acl: none`)".to_owned(),
        None => format!("no line of {place} allows it"),
    };
    let who = identity.unwrap_or("an anonymous client");
    let note = match identity {
        _ if settings
            .listeners
            .iter()
            .any(|listener| listener.files.as_ref().is_some_and(|own| own.acl != settings.acl)) =>
        {
            Some("listeners with an `acl:` of their own judge by that, and not by this".to_owned())
        }
        None if settings.listeners.iter().all(|listener| !listener.rules.allow_anonymous) => {
            Some("no listener lets anonymous clients in".to_owned())
        }
        Some(name) if !is_known(&settings, name)? => Some(format!("there is no {name} here")),
        _ => None,
    };
    if decision.allowed {
        say!("yes: {who} may {verb} {topic}\n  {why}");
        note.iter().for_each(|note| say!("  note: {note}"));
        Ok(())
    } else {
        say!("no: {who} may not {verb} {topic}\n  {why}");
        Err(Failure::new("not allowed"))
    }
}

fn is_known(settings: &crate::config::Settings, name: &str) -> Result<bool, Failure> {
    let directory = crate::gate::load_directory(settings).map_err(Failure::new)?;
    Ok(directory.identities().into_iter().any(|known| known.as_str() == name))
}
