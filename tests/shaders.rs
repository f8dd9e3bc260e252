//! The build step that preprocesses shaders: what it accepts, and where it says an error is. And every variant of every
//! shader is one that naga and the launcher take, so that none fails on a user's GPU. What the main loops of the dense products
//! execute is counted, and is what docs/kernels.md says.

#[cfg(feature = "wgpu")]
#[path = "shaders/bounds.rs"]
mod bounds;
#[path = "shaders/count.rs"]
mod count;
#[path = "../build/preprocess.rs"]
mod preprocess;
#[path = "shaders/table.rs"]
mod table;
#[path = "shaders/validate.rs"]
mod validate;

use std::path::{Path, PathBuf};

use count::{Launch, Shader};
use preprocess::{preprocess, variants};
use validate::validate;

fn folder(files: &[(&str, &str)]) -> PathBuf {
    let name = std::thread::current().name().unwrap_or("test").replace("::", "-");
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    for (file, text) in files {
        let path = root.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    root
}

fn run(root: &Path, defines: &[&str]) -> Result<preprocess::Text, String> {
    let defines: Vec<String> = defines.iter().map(|d| d.to_string()).collect();
    preprocess(root, "a.wgsl", &defines, &mut Vec::new())
}

#[test]
fn conditions_includes_and_bindings() {
    let root = folder(&[
        (
            "a.wgsl",
            "// variant:\n// variant: A B\n#include \"c/b.wgsl\"\n#include \"c/b.wgsl\"\n#if A && !B\nx\n#else\ny\n#if B\n@binding(next) z\n#end\n#end\n@binding(next) w\n",
        ),
        ("c/b.wgsl", "b\n"),
    ]);
    let text = |defines: &[&str]| run(&root, defines).unwrap().text.replace("// variant:\n// variant: A B\n", "");
    assert_eq!(text(&[]), "b\ny\n@binding(0) w\n");
    assert_eq!(text(&["A"]), "b\nx\n@binding(0) w\n");
    assert_eq!(text(&["A", "B"]), "b\ny\n@binding(0) z\n@binding(1) w\n");
    let origin = run(&root, &["A"]).unwrap().origin;
    assert_eq!(origin[2], (root.join("c/b.wgsl"), 1));
    assert_eq!(origin[3], (root.join("a.wgsl"), 6));
    let source = std::fs::read_to_string(root.join("a.wgsl")).unwrap();
    assert_eq!(variants(&source), [vec![], vec!["A".to_string(), "B".into()]]);
    assert_eq!(variants("x"), [Vec::<String>::new()]);
    let doubled = variants("// variant: A\n// variant: B\n// also: C\n// variant: D\n// also: E\n");
    assert_eq!(
        doubled.iter().map(|v| v.join(" ")).collect::<Vec<_>>(),
        ["A", "B", "D", "A C", "B C", "A E", "B E", "D E"]
    );
    let patterns = variants("// variant: A|B+C [D]\n// also: E\n// variant: [F|G]\n");
    assert_eq!(
        patterns.iter().map(|v| v.join(" ")).collect::<Vec<_>>(),
        ["A", "A D", "B C", "B C D", "", "F", "G", "A E", "A D E", "B C E", "B C D E"]
    );
}

#[test]
fn enable_lines_move_to_the_top() {
    let root = folder(&[("a.wgsl", "// a\n#include \"b.wgsl\"\nx\n"), ("b.wgsl", "b\nenable f16;\n")]);
    let out = run(&root, &[]).unwrap();
    assert_eq!(out.text, "enable f16;\n// a\nb\nx\n");
    assert_eq!(out.origin[0], (root.join("b.wgsl"), 2));
    assert_eq!(out.origin[3], (root.join("a.wgsl"), 3));
}

#[test]
fn mistakes_are_reported_where_they_are() {
    for (text, where_, what) in [
        ("\n#else\n", "a.wgsl:2", "#else without #if"),
        ("#end\n", "a.wgsl:1", "#end without #if"),
        ("#if A\n#else\n#else\n#end\n", "a.wgsl:3", "#else without #if"),
        ("#if A || B\n#end\n", "a.wgsl:1", "joined by &&"),
        ("#if A\n", "a.wgsl", "not closed"),
        ("\n\n#define A\n", "a.wgsl:3", "not a directive"),
        ("#include \"gone.wgsl\"\n", "a.wgsl:1", "included here"),
    ] {
        let root = folder(&[("a.wgsl", text)]);
        let error = run(&root, &[]).err().unwrap_or_default();
        assert!(error.contains(where_) && error.contains(what), "{text:?}: {error}");
    }
}

#[test]
fn every_variant_of_every_shader_is_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let files = std::fs::read_dir(&root).unwrap().flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let mut checked = 0;
    for file in files.filter(|f| f.ends_with(".wgsl")) {
        let source = std::fs::read_to_string(root.join(&file)).unwrap();
        for defines in variants(&source) {
            let text = preprocess(&root, &file, &defines, &mut Vec::new());
            text.and_then(|text| validate(&text, &defines)).unwrap_or_else(|e| panic!("{file} {defines:?}: {e}"));
            checked += 1;
        }
    }
    assert!(checked > 100, "{checked} variants");
}

#[test]
fn shaders_that_would_fail_on_a_gpu_are_refused() {
    const MAIN: &str = "@compute @workgroup_size(1) fn main() { ";
    let nine: String = (0..9)
        .map(|i| format!("@group(0) @binding({i}) var<storage, read_write> b{i}: array<f32>;\n"))
        .chain([MAIN.into()])
        .chain((0..9).map(|i| format!("b{i}[0] = 1.0; ")))
        .chain(["}\n".into()])
        .collect();
    let reads = format!("@group(0) @binding(0) var<storage, read> b: array<f32>;\n{MAIN}_ = b[0]; }}\n");
    let group = format!("@group(1) @binding(0) var<storage, read_write> b: array<f32>;\n{MAIN}b[0] = 1.0; }}\n");
    for (text, place, what) in [
        (format!("{MAIN}\n let x: u32 = 1.0; }}\n"), "a.wgsl:2", "u32"),
        (format!("{MAIN}\n let x = subgroupAdd(1.0); }}\n"), "a.wgsl:2", "ubgroup"),
        (format!("enable f16;\n{MAIN}\n let x = 1.0h; }}\n"), "a.wgsl:3", "FLOAT16"),
        (reads, "a.wgsl:1", "read_write"),
        (group, "a.wgsl:1", "@group(0)"),
        (nine, "a.wgsl", "9 storage buffers"),
        ("const x = 1;\n".into(), "a.wgsl", "no entry point"),
    ] {
        let root = folder(&[("a.wgsl", &text)]);
        let error = run(&root, &[]).and_then(|text| validate(&text, &[])).err().unwrap_or_default();
        assert!(error.contains(place) && error.contains(what), "{text:?}: {error}");
    }
}

/// A loop of which every count is known; each kind of memory, and a branch that depends on a parameter.
#[test]
fn what_a_workgroup_executes_is_counted() {
    let text = "
        struct Params { n: u32 }
        override TWICE: bool = false;
        @group(0) @binding(0) var<storage, read_write> x: array<vec4<f32>>;
        @group(0) @binding(1) var<uniform> p: Params;
        var<workgroup> tile: array<vec4<f32>, 8>;
        var<private> sum: vec4<f32>;
        fn step(i: u32) { sum = fma(tile[i], vec4<f32>(2.0), sum); }
        @compute @workgroup_size(4)
        fn main(@builtin(local_invocation_index) lid: u32, @builtin(workgroup_id) wg: vec3<u32>) {
            tile[lid] = x[wg.x];
            for (var i = lid; i < p.n; i += 4u) {
                step(i);
                if TWICE { sum += vec4<f32>(1.0); }
            }
            if lid == 0u { x[0] = sum; }
        }";
    let shader = Shader::new(text);
    let bound = |twice, n, bytes| {
        let (overrides, params, buffers) = ([("TWICE", twice)], [("n", n)], [bytes]);
        let (overrides, params, buffers) = (&overrides, &params, Some(buffers.as_slice()));
        shader.count(&Launch { entry: "main", overrides, params, workgroup: [2, 0, 0], grid: [3, 1, 1], buffers })
    };
    let of = |twice, n| bound(twice, n, 48);
    let [six, none] = [of(0, 6), of(0, 0)];
    assert_eq!((none.multiply_adds, none.loads, none.stores, none.shared_stores, none.shared_loads), (0, 4, 1, 4, 0));
    assert_eq!((six.multiply_adds, six.shared_loads, six.loads), (24, 6, 4));
    // Six times round: a comparison, and the addition to i.
    assert_eq!((six - none).operations, 12);
    assert_eq!((of(1, 6) - six).operations, 24);
    // Element 2 of two, and element 8 of 8.
    for (n, bytes) in [(6, 32), (12, 48)] {
        let walk = std::panic::AssertUnwindSafe(|| bound(0, n, bytes));
        assert!(std::panic::catch_unwind(walk).is_err(), "{n} {bytes}: no index is found to be too large");
    }
}

/// What runs without bounds checks needs none.
#[cfg(feature = "wgpu")]
#[test]
fn unchecked_shaders_keep_within_their_buffers() {
    let walked = bounds::walk_unchecked(&Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders"));
    assert!(walked >= 120, "{walked} variants");
}

/// The table in docs/kernels.md is what is counted (`TRIMTAB_BLESS=1` rewrites it).
#[test]
fn the_docs_have_what_is_counted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("docs/kernels.md");
    let text = std::fs::read_to_string(&path).unwrap().replace("\r\n", "\n");
    let (head, rest) = text.split_once("<!-- counted -->\n").expect("the mark above the table");
    let (found, tail) = rest.split_once("\n<!-- end -->").expect("the mark after the table");
    let expected = table::table(&root.join("shaders"));
    if std::env::var_os("TRIMTAB_BLESS").is_some_and(|v| v == "1") {
        std::fs::write(&path, format!("{head}<!-- counted -->\n{expected}\n<!-- end -->{tail}")).unwrap();
        return;
    }
    assert!(found == expected, "docs/kernels.md is not what is counted: TRIMTAB_BLESS=1 rewrites it");
}
