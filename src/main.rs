fn main() {
    use trimtab::train::metrics::{Event, Metrics};
    let a: Vec<String> = std::env::args().skip(1).collect();
    let file = std::path::PathBuf::from(&a[0]);
    let pairs: Vec<(&str, &str)> = a[1..].chunks(2).map(|c| (c[0].as_str(), c[1].as_str())).collect();
    let flags = trimtab::config::Flags::of(&pairs).unwrap();
    let c = trimtab::config::RunConfig::resolve(if a[0] == "-" { None } else { Some(&file) }, &flags).unwrap();
    std::fs::create_dir_all(c.out.as_ref().unwrap()).unwrap();
    let mut m = Metrics::create(c.out.as_ref().unwrap()).unwrap();
    let mut p = trimtab::train::progress::Progress::stderr();
    let r = trimtab::train::run::run(&c, &mut |e: Event| { m.write(&e)?; p.show(&e); Ok(()) });
    if let Err(e) = r { eprintln!("{e}"); std::process::exit(1) }
}
