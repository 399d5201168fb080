//! Parse, call, exit code.

fn main() -> std::process::ExitCode {
    lockgate::cli::main()
}
