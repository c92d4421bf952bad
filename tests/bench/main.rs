//! Benchmarks on real processes: `cargo xtask bench NAME [--json]`.

mod detect;
mod table;

use anyhow::bail;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let json = args.iter().any(|arg| arg == "--json");
    let runs = args.iter().find_map(|arg| arg.strip_prefix("--runs=")?.parse().ok());
    let name = args.iter().find(|arg| !arg.starts_with('-')).map_or("", String::as_str);
    let table = match name {
        "detect" => detect::run(runs.unwrap_or(detect::RUNS))?,
        other => bail!("no benchmark {other:?}; there is: detect"),
    };
    print!("{}", table.text());
    if json {
        println!("{}", table.json(name));
    }
    Ok(())
}
