// The page knows best under which address it was reached: behind a proxy, the server does not.
const here = new URL(".", location.href).href.replace(/\/$/, "");
for (const code of document.querySelectorAll("main code")) {
  code.textContent = code.textContent.replaceAll(document.body.dataset.address, here);
}

fetch("openapi.json").then((answer) => answer.json()).then((spec) => {
  spec.servers = [{ url: here }];
  SwaggerUIBundle({
    spec,
    domNode: document.getElementById("swagger-ui"),
    validatorUrl: null, // else it would send the document to a server on the internet
    deepLinking: true,
    docExpansion: "list",
    defaultModelsExpandDepth: 0,
  });
});
