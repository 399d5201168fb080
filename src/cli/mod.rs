//! The command line: one file a command. What was typed becomes what is meant; errors become one
//! sentence that says what happened, where, and what to do.

/// Prints a line. A reader that went away (`lockgate client list | head -1`) is no error.
macro_rules! say {
    ($($argument:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($argument)*);
    }};
}

mod acl;
mod acme;
mod ask;
mod bench;
mod bundle;
mod ca;
mod client;
mod control;
mod dial;
mod doctor;
mod enroll;
mod environment;
mod import;
mod init;
mod log;
mod make;
mod mosquitto;
mod mosquitto_passwd;
mod pages;
mod passwd;
mod privileges;
mod publish;
mod rehash;
mod report;
mod run;
mod running;
mod sealed;
mod serve;
mod server;
mod site;
mod status;
mod store;
mod subscribe;
mod system;
mod torture;
mod up;
mod watch;

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// An MQTT broker that is its own certificate authority.
#[derive(Parser)]
#[command(
    name = "lockgate",
    version = env!("LOCKGATE_VERSION"),
    about,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true
)]
#[command(
    after_help = "From nothing to a running secure broker:\n  lockgate up\n\nOr step by step:\n  lockgate init --client device1\n  lockgate serve"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a site where there is none, then serve it, and print the commands to try it with
    Up(up::Arguments),
    /// Make the CA, certificates, passwords and configuration of a site
    Init(init::Arguments),
    /// Run the broker
    Serve(serve::Arguments),
    /// Manage who may connect: devices, applications, people
    Client(client::Arguments),
    /// Get a certificate for a key of this device, or make the token that lets a device do so
    Enroll(Box<enroll::Arguments>),
    /// Show the certificate authority, and list what it revoked
    Ca(ca::Arguments),
    /// Show and renew the broker's own certificate
    Server(server::Arguments),
    /// Edit a bare password file (a site's own: `lockgate client passwd`)
    Passwd(passwd::Arguments),
    /// Bring another broker's installation over
    Import(import::Arguments),
    /// Serve with a mosquitto.conf as it is (also when this program is called `mosquitto`)
    #[command(disable_help_flag = true)]
    Mosquitto(Foreign),
    /// Manage a password file by Mosquitto's flags (also when this program is called so)
    #[command(name = "mosquitto_passwd", disable_help_flag = true)]
    MosquittoPasswd(Foreign),
    /// Ask the ACL a question
    Acl(acl::Arguments),
    /// Look at what the broker keeps, copy it, and put it back
    Store(store::Arguments),
    /// Kill a broker of its own again and again, and account for every acknowledged message
    Torture(torture::Arguments),
    /// Load any broker with messages or connections, and measure what comes of it
    Bench(bench::Arguments),
    /// Publish messages to any broker: from the command line, a file, or lines of standard input
    #[command(disable_help_flag = true)]
    Pub(Box<publish::Arguments>),
    /// Subscribe at any broker, and print what comes
    #[command(disable_help_flag = true)]
    Sub(Box<subscribe::Arguments>),
    /// Find out what is wrong between a client and a broker, or with a site, and what mends it
    #[command(disable_help_flag = true)]
    Doctor(Box<doctor::Arguments>),
    /// Run a command with a broker of its own, which goes with it: for tests; or with a broken one
    Run(run::Arguments),
    /// Show what a running broker does
    Status(status::Arguments),
    /// Make a running broker read its configuration, passwords, ACL and certificates anew
    Reload(status::ReloadArguments),
    /// Exit 0 if the broker is alive and ready, 1 otherwise (for containers)
    Health(status::HealthArguments),
    /// Write a shell's completions to standard output
    Completions(pages::Completions),
    /// Write the man pages of all commands
    Man(pages::Man),
}

/// Arguments that are another program's.
#[derive(Args)]
struct Foreign {
    /// As Mosquitto has them; -h lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<std::ffi::OsString>,
}

/// Which site a command is about.
#[derive(Args, Clone, Debug, Default)]
struct SiteArguments {
    /// The configuration file [default: $LOCKGATE_CONFIG, ./config/lockgate.yaml, /etc/lockgate/lockgate.yaml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The site's folder, in place of --config
    #[arg(long, value_name = "FOLDER", conflicts_with = "config")]
    dir: Option<PathBuf>,
}

/// A command that did not do what it was asked for.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// Something in the world is not as it should be: exit code 1.
    fn new(message: impl fmt::Display) -> Failure {
        Failure { code: 1, message: message.to_string() }
    }

    fn with_code(self, code: u8) -> Failure {
        Failure { code, ..self }
    }

    /// The configuration is not valid, or the command line: exit code 2.
    fn configuration(message: impl fmt::Display) -> Failure {
        Failure { code: 2, message: message.to_string() }
    }
}

impl From<crate::pki::FileError> for Failure {
    fn from(error: crate::pki::FileError) -> Failure {
        Failure::new(error)
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let mut called = std::env::args_os();
    let name = called.next().map(PathBuf::from).unwrap_or_default();
    match name.file_name().and_then(|name| name.to_str()) {
        Some("mosquitto") => return finish(mosquitto::run(called)),
        Some("mosquitto_passwd") => return finish(mosquitto_passwd::run(called)),
        _ => {}
    }
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Command::Up(arguments) => up::run(arguments),
        Command::Init(arguments) => init::run(arguments),
        Command::Serve(arguments) => serve::run(arguments),
        Command::Client(arguments) => client::run(arguments),
        Command::Enroll(arguments) => enroll::run(*arguments),
        Command::Ca(arguments) => ca::run(arguments),
        Command::Server(arguments) => server::run(arguments),
        Command::Passwd(arguments) => passwd::run(arguments),
        Command::Import(arguments) => import::run(arguments),
        Command::Mosquitto(foreign) => mosquitto::run(foreign.arguments.into_iter()),
        Command::MosquittoPasswd(foreign) => mosquitto_passwd::run(foreign.arguments.into_iter()),
        Command::Acl(arguments) => acl::run(arguments),
        Command::Store(arguments) => store::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Torture(arguments) => torture::run(arguments),
        Command::Doctor(arguments) => return doctor::run(&arguments),
        Command::Run(arguments) => return run::run(&arguments),
        Command::Pub(arguments) => publish::run(&arguments),
        Command::Sub(arguments) => subscribe::run(&arguments),
        Command::Status(arguments) => status::run(arguments),
        Command::Reload(arguments) => status::reload(arguments),
        Command::Health(arguments) => status::health(arguments),
        Command::Completions(arguments) => pages::completions(&arguments),
        Command::Man(arguments) => pages::man(&arguments),
    };
    finish(outcome)
}

fn finish(outcome: Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // In Mosquitto's stead it speaks as that does.
            let prefix = if failure.message.starts_with("Error") { "" } else { "lockgate: " };
            eprintln!("{prefix}{}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}
