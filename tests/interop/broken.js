// Connects by the variables of the environment, subscribes and publishes five messages, and prints what a person would
// see. It goes on as a good client does: connects again, and sends what was not acknowledged.

const fs = require("node:fs");
const mqtt = require("mqtt");

const seconds = Number(process.argv[2]);
const { env } = process;
const started = Date.now();
const tls = env.MQTT_USE_TLS === "true";
const file = (name) => (env[name] ? fs.readFileSync(env[name]) : undefined);
const client = mqtt.connect({
  protocol: tls ? "mqtts" : "mqtt",
  host: env.MQTT_HOST,
  port: Number(env.MQTT_PORT),
  protocolVersion: 5,
  clientId: "mqttjs",
  clean: false,
  properties: { sessionExpiryInterval: 60 },
  reconnectPeriod: 1000,
  reconnectOnConnackError: true,
  ca: file("MQTT_CA_CERTS"),
  cert: file("MQTT_CERTFILE"),
  key: file("MQTT_KEYFILE"),
  username: env.MQTT_USER,
  password: env.MQTT_PASSWORD,
});
let acknowledged = 0;
let published = 0;
const publish = () => {
  while (published < 5) {
    client.publish(`here/${published}`, `m${published}`, { qos: 1 }, (error) => {
      console.log("PUBACK", error ? error.message : "Success");
      acknowledged += 1;
      if (acknowledged === 5) setTimeout(() => end(0), 300);
    });
    published += 1;
  }
};
const end = (code) => {
  console.log(`${acknowledged} of 5 acknowledged`);
  client.end(true, () => process.exit(code));
};
client.on("connect", () => {
  console.log(`CONNACK after ${((Date.now() - started) / 1000).toFixed(1)} s`);
  if (tls) console.log("speaks", client.stream.getProtocol());
  client.subscribe("here/#", { qos: 1 }, (error, granted) => {
    console.log("SUBACK", error ? error.message : granted.map((one) => one.qos).join());
    publish();
  });
});
client.on("error", (error) => {
  console.log("error:", error.message);
  // What will not be better the next time.
  if (!/busy|EPIPE|ECONNRESET/i.test(error.message)) end(1);
});
client.on("close", () => console.log("closed"));
client.on("message", (topic, payload, packet) => console.log("message", `${payload}`, packet.dup ? "DUP" : ""));
setTimeout(() => end(0), seconds * 1000);
