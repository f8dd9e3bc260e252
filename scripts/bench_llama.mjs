// Times llama.cpp (node-llama-cpp's prebuilt) on a prompt of token ids: seconds to read it, then tokens written greedily.
// Started by bench_peers.py:
//   node scripts/bench_llama.mjs FOLDER MODEL.gguf DATA.jsonl THREADS TEXTS WRITTEN
// FOLDER has node_modules with node-llama-cpp in it. The first line of DATA.jsonl holds the prompt as input_ids.
import {readFileSync} from "node:fs";
import {resolve} from "node:path";
import {pathToFileURL} from "node:url";

const [folder, modelPath, data, threads, texts, written] = process.argv.slice(2);
const entry = resolve(folder, "node_modules/node-llama-cpp/dist/index.js");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(entry).href);

const ids = JSON.parse(readFileSync(data, "utf8").split("\n")[0]).input_ids;
const llama = await getLlama({gpu: false, build: "never", maxThreads: +threads, logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({
    contextSize: ids.length + +written + 8, batchSize: ids.length, threads: {ideal: +threads, min: +threads}
});
const sequence = context.getSequence();

// llama.cpp comes with a library for each kind of CPU and loads one of them.
let library = "unknown";
try {
    library = readFileSync("/proc/self/maps", "utf8").match(/libggml-cpu-\w+/)?.[0] ?? library;
} catch {
    // No /proc: the list of instruction sets says it too.
}
console.log(JSON.stringify({cpu: `${library}; ${llama.systemInfo.trim()}`}));

for (let i = 0; i < +texts; i++) {
    await sequence.clearHistory();
    const tokens = sequence.evaluate(ids, {temperature: 0, yieldEogToken: true});
    const start = performance.now();
    await tokens.next();
    const read = performance.now();
    for (let j = 0; j < +written; j++)
        await tokens.next();
    const wrote = performance.now();
    await tokens.return();
    console.log(JSON.stringify({read: 1e3 * ids.length / (read - start), wrote: 1e3 * +written / (wrote - read)}));
}
// Leaving without this waits for the library's threads.
process.exit(0);
