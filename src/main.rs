//! Parse, call, exit code.

/// Messages are allocated by one thread and freed by another all day: the system's allocator takes locks for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    lockgate::cli::main()
}
