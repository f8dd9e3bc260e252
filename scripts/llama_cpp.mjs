// Loads what Trimtab exports in llama.cpp (node-llama-cpp's prebuilt) and compares. Started by llama-cpp.sh:
//   node scripts/llama_cpp.mjs FOLDER TRIMTAB WORK MODEL...
// FOLDER has node_modules with node-llama-cpp in it; files are written to WORK.
import {execFileSync} from "node:child_process";
import {readFileSync, statSync, writeFileSync} from "node:fs";
import {join, resolve} from "node:path";
import {pathToFileURL} from "node:url";

const [folder, trimtab, work, ...models] = process.argv.slice(2);
const entry = resolve(folder, "node_modules/node-llama-cpp/dist/index.js");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(entry).href);
// Threads of llama.cpp wait for each other busily, which is slow where other programs run.
const llama = await getLlama({gpu: false, build: "never", maxThreads: 1, logLevel: LlamaLogLevel.error});

const TYPES = (process.env.TYPES ?? "f32,f16,bf16,q8_0,q6_k,q4_k,q4_0").split(",");
// Tokens of the text, of a prompt, and of what is written after it.
const [LENGTH, PROMPT, WRITTEN] = [64, 8, 16];
// llama.cpp rounds activations to 8 bits before products with quantized weights, and to 16 before those with 16-bit ones; ours
// stay f32. So losses differ by that, whatever the file. In f32 too it is its rounding: on SmolLM2 its loss is 1.5e-4 (with a
// cache in f32) or 8e-5 (in f16, its default) from transformers' in float64, ours 9e-6.
const TOLERANCE = {f32: 3e-4, f16: 3e-3, bf16: 2e-2};
// On SmolLM2 what it makes of one file differs by 2.6e-2 between processors (q6_k: 2.7215 on a Xeon, 2.7474 on a Zen 5).
const ROUNDED = 6e-2;
const text = readFileSync("assets/shakespeare.txt", "utf8").slice(1000, 2000);
const run = (...args) => execFileSync(trimtab, args, {encoding: "utf8", stdio: ["ignore", "pipe", "pipe"]});

/** Loss of `ids` and what follows the first of them, by llama.cpp. */
async function theirs(model, ids, lora) {
    const context = await model.createContext({
        contextSize: LENGTH + WRITTEN + 8, batchSize: LENGTH, lora, flashAttention: false, threads: {ideal: 1, min: 1}
    });
    const sequence = context.getSequence();
    const asked = id => [id, {generateNext: {probabilities: true, options: {temperature: 1, topK: 0, topP: 1, minP: 0}}}];
    const results = await sequence.controlledEvaluate(ids.map(asked));
    let loss = 0;
    for (let i = 0; i + 1 < ids.length; i++)
        loss -= Math.log(results[i].next.probabilities.get(ids[i + 1]));
    await sequence.clearHistory();
    const written = [];
    for await (const id of sequence.evaluate(ids.slice(0, PROMPT), {temperature: 0, yieldEogToken: true})) {
        written.push(id);
        if (written.length === WRITTEN)
            break;
    }
    await context.dispose();
    return {loss: loss / (ids.length - 1), text: model.detokenize([...ids.slice(0, PROMPT), ...written])};
}

/** The same by Trimtab. */
function ours(model, ids, prompt, adapter) {
    const data = join(work, "ids.jsonl");
    writeFileSync(data, JSON.stringify({input_ids: ids, labels: ids}) + "\n");
    const more = adapter ? ["--adapter", adapter] : [];
    const common = ["--model", model, ...more, "--device", "cpu"];
    const found = JSON.parse(run("eval", ...common, "--data", data, "--max-seq-len", String(LENGTH), "--json"));
    const sampled = ["--prompt", prompt, "--temperature", "0", "--max-tokens", String(WRITTEN)];
    return {loss: found.loss, text: run("generate", ...common, ...sampled).replace(/\n$/, "")};
}

let failed = 0;
console.log("| model | file | MB | loss in llama.cpp | in Trimtab | difference | greedy text |\n|---|---|---|---|---|---|---|");
for (const base of models) {
    const name = base.split("/").pop().replace(/\.gguf$/, "");
    const data = join(work, "train.jsonl");
    writeFileSync(data, JSON.stringify({text: text.slice(0, 400)}) + "\n");
    const adapter = join(work, `${name}-adapter`);
    run("train", "--model", base, "--data", data, "--out", adapter, "--steps", "3", "--lr", "1e-3", "--max-seq-len", "64",
        "--rank", "4", "--device", "cpu");
    const row = async (label, file, type, lora, ourModel, ourAdapter) => {
        const model = await llama.loadModel({modelPath: file});
        const ids = [...model.tokenize(text, true)].slice(0, LENGTH);
        const them = await theirs(model, ids, lora);
        const us = ours(ourModel, ids, model.detokenize(ids.slice(0, PROMPT)), ourAdapter);
        await model.dispose();
        const difference = Math.abs(them.loss - us.loss);
        const right = difference < (TOLERANCE[type] ?? ROUNDED);
        failed += right ? 0 : 1;
        let same = 0;
        while (same < us.text.length && us.text[same] === them.text[same])
            same++;
        const greedy = us.text === them.text ? "the same" : `the same for ${same} of ${us.text.length} letters`;
        const size = ((statSync(file).size + (lora ? statSync(lora).size : 0)) / 1e6).toFixed(2);
        const cells = [name, label, size, them.loss.toFixed(5), us.loss.toFixed(5), difference.toExponential(1), greedy];
        console.log(`| ${cells.join(" | ")} |${right ? "" : " WRONG"}`);
    };
    for (const type of TYPES) {
        const file = join(work, `${name}-${type}.gguf`);
        run("export", "--model", base, "--adapter", adapter, "--type", type, "--out", file);
        await row(`merged, ${type}`, file, type, undefined, file);
    }
    const plain = join(work, `${name}-plain.gguf`);
    const lora = join(work, `${name}-lora.gguf`);
    run("export", "--model", base, "--type", "f32", "--out", plain);
    run("export", "--model", base, "--adapter", adapter, "--lora-only", "--out", lora);
    await row("f32 and its adapter", plain, "f32", lora, plain, adapter);
    // The control: without the adapter the loss is another one.
    const model = await llama.loadModel({modelPath: plain});
    const ids = [...model.tokenize(text, true)].slice(0, LENGTH);
    const [without, withIt] = [await theirs(model, ids), await theirs(model, ids, lora)];
    await model.dispose();
    const seen = Math.abs(without.loss - withIt.loss);
    failed += seen > 1e-2 ? 0 : 1;
    console.log(`| ${name} | f32 without it | | ${without.loss.toFixed(5)} | | | |${seen > 1e-2 ? "" : " WRONG"}`);
}
if (failed > 0)
    console.error(`${failed} rows are wrong`);
process.exit(failed > 0 ? 1 : 0);
