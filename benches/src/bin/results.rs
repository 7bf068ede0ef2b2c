//! Makes `RESULTS.md` and its plots from the data files in `benches/results/`.

use std::process::ExitCode;

use benches::results::render;

fn main() -> ExitCode {
    match render::write() {
        Ok(paths) => {
            for path in paths {
                println!("{}", path.display());
            }
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("results: {why}");
            ExitCode::FAILURE
        }
    }
}
