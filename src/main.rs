use std::process::ExitCode;

fn main() -> ExitCode {
    edgevpn::cli::main()
}
