// Asks a GGUF file in llama.cpp (node-llama-cpp's prebuilt, which scripts/llama-cpp.sh puts into models/llama):
//   node scripts/llama_ask.mjs models/llama FILE.gguf QUESTION...
// The file's own chat template makes the text; the likeliest token is taken.
import {resolve} from "node:path";
import {pathToFileURL} from "node:url";

const [folder, file, ...questions] = process.argv.slice(2);
const entry = resolve(folder, "node_modules/node-llama-cpp/dist/index.js");
const {getLlama, JinjaTemplateChatWrapper, LlamaChatSession, LlamaLogLevel} = await import(pathToFileURL(entry).href);
const llama = await getLlama({gpu: false, build: "never", maxThreads: 2, logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath: resolve(file)});
const template = model.fileInfo.metadata.tokenizer.chat_template;
for (const question of questions) {
    const context = await model.createContext({contextSize: 512});
    const chatWrapper = new JinjaTemplateChatWrapper({template});
    const session = new LlamaChatSession({contextSequence: context.getSequence(), chatWrapper, systemPrompt: process.env.SYSTEM});
    console.log(`${question}\n  ${await session.prompt(question, {temperature: 0, maxTokens: 60})}`);
    await context.dispose();
}
process.exit(0);
