// What we use of ComfyUI's page, whose own types are not at hand where our files are checked. Read by `tsc` alone.
declare module "*/scripts/app.js" {
  export const app: any;
}
declare module "*/scripts/api.js" {
  export const api: any;
}
