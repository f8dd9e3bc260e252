//! A run's page in a real browser, light and dark, wide and narrow: Chromium, where there is one.

mod common;

use std::path::Path;
use std::process::Command;

use common::scratch::Scratch;
use serde_json::{Value, json};
use trimtab::config::RunConfig;
use trimtab::run::report;

/// Looks at a page when it is there: colours, what does not fit its width, curves that are seen.
const LOOK: &str = r#"<script>
addEventListener("load", () => {
    const numbers = colour => colour.match(/[\d.]+/g).slice(0, 3).map(Number);
    const lightness = colour => {
        const [r, g, b] = numbers(colour).map(x => (x /= 255) <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const page = getComputedStyle(document.body);
    const ground = lightness(page.backgroundColor);
    const contrast = colour => {
        const [a, b] = [lightness(colour), ground].sort((a, b) => b - a);
        return (a + 0.05) / (b + 0.05);
    };
    const words = [page.color, ...[...document.querySelectorAll("svg text")].map(t => getComputedStyle(t).fill)];
    const curves = [...document.querySelectorAll("svg path")].filter(p => p.getBoundingClientRect().width > 50);
    document.body.dataset.found = encodeURIComponent(JSON.stringify({
        background: ground,
        contrast: Math.min(...words.map(contrast)),
        overflow: document.documentElement.scrollWidth - innerWidth,
        curves: curves.length,
        texts: [...document.querySelectorAll("h2")].map(h => h.innerText),
    }));
});
</script>"#;

fn browser() -> Option<&'static str> {
    let names = ["chromium", "chromium-browser", "google-chrome", "chrome"];
    names.into_iter().find(|name| Command::new(name).arg("--version").output().is_ok_and(|out| out.status.success()))
}

/// What the browser finds on the page.
fn look(browser: &str, page: &Path, dark: bool, width: usize) -> Value {
    let scheme = if dark { "preferredColorScheme=0" } else { "preferredColorScheme=1" };
    let out = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"])
        .arg(format!("--blink-settings={scheme}"))
        .arg(format!("--window-size={width},1000"))
        .arg(format!("--user-data-dir={}", page.with_extension("profile").display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let dom = String::from_utf8_lossy(&out.stdout).into_owned();
    let found = dom.split_once("data-found=\"").and_then(|(_, rest)| rest.split_once('"')).map(|(found, _)| found);
    let found = found.unwrap_or_else(|| panic!("{dom}{}", String::from_utf8_lossy(&out.stderr)));
    // What encodeURIComponent left is ASCII.
    let mut bytes = Vec::new();
    let mut rest = found.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            byte => byte,
        });
    }
    serde_json::from_slice(&bytes).unwrap()
}

#[test]
fn a_page_reads_well_light_and_dark_wide_and_narrow() {
    let Some(browser) = browser() else {
        assert!(std::env::var_os("TRIMTAB_REQUIRE_BROWSER").is_none(), "TRIMTAB_REQUIRE_BROWSER is set: no Chromium");
        eprintln!("skipped: there is no Chromium");
        return;
    };
    let scratch = Scratch::new("page");
    let run = scratch.0.join("run");
    std::fs::create_dir_all(&run).unwrap();
    let long = "a very long line of text that goes on and on ".repeat(12);
    let examples = |loss: f64| json!([{"example": 0, "text": long, "loss": loss}]);
    let mut events = vec![
        json!({"event": "run", "config": RunConfig::default().to_json(), "device": "cpu", "trained_parameters": 5, "parameters": 9}),
        json!({"event": "examples", "step": 0, "examples": examples(3.0)}),
        json!({"event": "sample", "step": 0, "prompt": "Who?", "text": long}),
    ];
    for step in 1..=50 {
        let x = f64::from(step);
        events.push(json!({"event": "step", "step": step, "loss": 4.0 / x, "lr": 1e-4 / x, "grad_norm": 1.0 + x.sin(),
                           "tokens": 100, "tokens_per_second": 100.0 + x, "skipped": 0}));
    }
    events.push(json!({"event": "eval", "step": 25, "loss": 1.0, "metrics": {"perplexity": 2.7}}));
    events.push(json!({"event": "eval", "step": 50, "loss": 0.5, "metrics": {"perplexity": 1.6}}));
    events.push(json!({"event": "examples", "step": 50, "examples": examples(1.0)}));
    events.push(json!({"event": "sample", "step": 50, "prompt": "Who?", "text": "Me."}));
    let lines: String = events.iter().map(|event| format!("{event}\n")).collect();
    std::fs::write(run.join("metrics.jsonl"), lines).unwrap();
    let page = scratch.0.join("page.html");
    report::write(&[run], &page).unwrap();
    let html = std::fs::read_to_string(&page).unwrap();
    let looked = |name: &str, html: &str| {
        let path = scratch.0.join(name);
        std::fs::write(&path, format!("{html}{LOOK}")).unwrap();
        path
    };
    let page = looked("looked.html", &html);
    for (dark, width) in [(false, 1280), (true, 1280), (false, 500), (true, 500)] {
        let found = look(browser, &page, dark, width);
        let number = |key: &str| found[key].as_f64().unwrap();
        assert_eq!(number("background") < 0.1, dark, "{dark} {width}: {found}");
        assert!(number("contrast") >= 4.5, "{dark} {width}: {found}");
        assert!(number("overflow") <= 0.0, "{dark} {width}: {found}");
        assert!(number("curves") >= 6.0, "{dark} {width}: {found}");
        for part in ["Curves", "Evaluations", "Texts", "Examples", "Settings"] {
            assert!(found["texts"].as_array().unwrap().contains(&part.into()), "{part}: {found}");
        }
    }
    // One that is always dark, and wider than the window, is seen to be.
    let wrong = html.replace("background:#fff", "background:#000;min-width:3000px");
    let found = look(browser, &looked("wrong.html", &wrong), false, 500);
    assert!(found["background"].as_f64() < Some(0.1) && found["overflow"].as_f64() > Some(0.0), "{found}");
    assert!(found["contrast"].as_f64() < Some(4.5), "{found}");
}
