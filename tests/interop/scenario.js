// Everything that an application does, by MQTT.js, which reads a client's mqtt.env as written.
// usage: node scenario.js MQTT_ENV 3.1.1|5 PORT LEVEL
"use strict";
const fs = require("fs");
const mqtt = require("mqtt");

const [, , envFile, version, port, level, web] = process.argv;
const env = Object.fromEntries(
  fs.readFileSync(envFile, "utf8").trim().split("\n").map((line) => line.split(/=(.*)/s).slice(0, 2)),
);
const PATIENCE = 30_000;
const name = `js-${version}-${level}${web || ""}`;
const base = `${env.MQTT_USER || "device1"}/${name}`;

setTimeout(() => { console.error("nothing comes"); process.exit(2); }, 2 * PATIENCE).unref();

async function client(id, { clean = true, will } = {}) {
  const options = {
    host: env.MQTT_HOST,
    port: Number(port),
    protocol: (web ? "ws" : "mqtt") + (env.MQTT_USE_TLS === "true" ? "s" : ""),
    path: "/any/path",
    protocolVersion: version === "5" ? 5 : 4,
    clientId: `${name}-${id}`,
    username: env.MQTT_USER,
    password: env.MQTT_PASSWORD,
    clean,
    will,
    reconnectPeriod: 0,
    rejectUnauthorized: env.MQTT_TLS_INSECURE === "false",
  };
  if (version === "5") options.properties = { sessionExpiryInterval: clean ? 0 : 3600 };
  if (env.MQTT_CA_CERTS) options.ca = fs.readFileSync(env.MQTT_CA_CERTS);
  if (env.MQTT_CERTFILE) {
    options.cert = fs.readFileSync(env.MQTT_CERTFILE);
    options.key = fs.readFileSync(env.MQTT_KEYFILE);
  }
  const connection = mqtt.connect(options);
  const queue = [];
  const waiting = [];
  connection.on("message", (topic, payload, packet) => {
    const message = { topic, payload, qos: packet.qos, retain: packet.retain };
    if (waiting.length) waiting.shift()(message);
    else queue.push(message);
  });
  const connack = await new Promise((resolve, reject) => {
    connection.once("connect", resolve);
    connection.once("error", reject);
  });
  return {
    connection,
    present: connack.sessionPresent,
    subscribe: (topic, qos) => connection.subscribeAsync(topic, { qos }),
    publish: (topic, payload, qos = 1, retain = false) => connection.publishAsync(topic, payload, { qos, retain }),
    next: async () => (queue.length ? queue.shift() : new Promise((resolve) => waiting.push(resolve))),
    async expect(topic, payload, qos, retain) {
      const message = await this.next();
      const same = message.topic === topic && Buffer.compare(message.payload, Buffer.from(payload)) === 0;
      if (!same || (qos !== undefined && message.qos !== qos) || (retain !== undefined && message.retain !== retain)) {
        throw new Error(`expected ${topic} q${qos}, got ${message.topic} q${message.qos} retain=${message.retain} (${message.payload.length} bytes)`);
      }
    },
    close: () => connection.endAsync(),
  };
}

async function main() {
  const subscriber = await client("sub");
  const publisher = await client("pub");
  for (const qos of [0, 1, 2]) await subscriber.subscribe(`${base}/qos${qos}/#`, qos);
  for (const published of [0, 1, 2]) {
    for (const subscribed of [0, 1, 2]) {
      const topic = `${base}/qos${subscribed}/x`;
      await publisher.publish(topic, "hello", published);
      await subscriber.expect(topic, "hello", Math.min(published, subscribed), false);
    }
  }
  const large = Buffer.alloc(5 * 1024 * 1024, "0123456789abcdef");
  await publisher.publish(`${base}/qos1/large`, large, 1);
  await subscriber.expect(`${base}/qos1/large`, large);

  await publisher.publish(`${base}/retained`, "kept", 1, true);
  const late = await client("late");
  await late.subscribe(`${base}/retained`, 1);
  await late.expect(`${base}/retained`, "kept", 1, true);
  await publisher.publish(`${base}/retained`, "", 1, true);
  await late.expect(`${base}/retained`, "");
  await late.close();

  const watcher = await client("watcher");
  await watcher.subscribe(`${base}/will`, 1);
  const mortal = await client("mortal", { will: { topic: `${base}/will`, payload: Buffer.from("gone"), qos: 1, retain: false } });
  mortal.connection.stream.destroy();
  await watcher.expect(`${base}/will`, "gone");
  await watcher.close();

  let sleeper = await client("sleeper", { clean: false });
  await sleeper.subscribe(`${base}/queue`, 2);
  await sleeper.close();
  // Order holds among messages of one QoS: a client gives QoS 2 on only when it is released.
  for (const qos of [1, 2]) {
    for (let number = 0; number < 10; number++) await publisher.publish(`${base}/queue`, String(number), qos);
  }
  sleeper = await client("sleeper", { clean: false });
  if (!sleeper.present) throw new Error("no session present");
  const got = [];
  for (let count = 0; count < 20; count++) got.push(await sleeper.next());
  for (const qos of [1, 2]) {
    const order = got.filter((message) => message.qos === qos).map((message) => message.payload.toString()).join();
    if (order !== "0,1,2,3,4,5,6,7,8,9") throw new Error(`QoS ${qos} came as ${order}`);
  }
  await sleeper.close();
  await publisher.close();
  await subscriber.close();
  console.log("ok");
}

main().then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
